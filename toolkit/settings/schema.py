"""What a recipe may say: strict, frozen, typed settings.

Knows names, types and ranges of settings. Refuses to know where they come from or what is done
with them.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from toolkit.settings.section import (
    Count,
    Fraction,
    Natural,
    Positive,
    Probability,
    Section,
    Seed,
    Text,
)
from toolkit.settings.task_schema import Classification, Mteb, Probe, Retrieval, WordTask

INSTRUCTION_FORMAT = "{instruction}; "  # before a text; LLM2Vec's
TEXT_FORMAT = "{text}"
DType = Literal["fp32", "bf16"]
Attention = Literal["packed", "sdpa", "eager"]
Kernel = Literal["torch", "liger"]
VectorFormat = Literal["fp32", "fp16", "bf16", "int8", "binary"]


class Lora(Section):
    """Low-rank adapters on the named linear layers (peft)."""

    rank: Count
    alpha: Count
    dropout: Fraction
    targets: tuple[Text, ...]


class Model(Section):
    """What is trained. `base` is a hub name, a model folder, or a finished run directory.

    attention "packed" puts a batch's texts one after another, without padding; the others pad.
    `attention_dropout` stands in place of the base's own.
    """

    base: Text
    dtype: DType
    attention: Attention = "packed"
    attention_dropout: Fraction = 0.0
    activation_checkpointing: bool = False
    lora: Lora | None


class Data(Section):
    """A directory of shards (of pairs for supervised training), and the length of a row: where a
    text is cut, or how many tokens of documents fill a block.

    `held_out_documents` of the shards, drawn by `train.seed`, are never trained on. MNTP's loss and
    accuracy on them stand in the metrics before the first step and after every
    `mntp.evaluate_every_steps`."""

    train: Text
    max_tokens: Annotated[int, Field(ge=8)]
    held_out_documents: Natural = 0


class Train(Section):
    """The optimisation. `horizon_steps` is where the linear schedule reaches zero; it is another
    setting than `steps`, where the run stops: the reference stops early in a long schedule.

    A micro-batch holds at most `micro_batch_rows` rows; or, when `micro_batch_tokens` is given, as
    many rows as have about so many tokens (packed attention only). A step whose loss or gradient is
    NaN or infinite is skipped; more than `max_skipped_steps` in a run end it. `views` show the
    metrics elsewhere too.

    Kept are the newest `keep_checkpoints`, those of every `keep_every_steps`, and with `keep_best`
    that with the best score of the `probe`, or else the lowest held-out loss (MNTP).
    `background_save` writes them from copies in host memory while training goes on. A run directory
    is continued by its own recipe only, but for the keys that `may_differ` names.

    Ranks say every `heartbeat_s` seconds that they live: one that is silent for two of these ends
    the job, and so does a job in which no rank gets on for `stall_s`."""

    steps: Count
    horizon_steps: Count
    global_batch_rows: Count
    micro_batch_rows: Count
    micro_batch_tokens: Count | None = None
    seed: Seed
    lr: Positive
    warmup_steps: Natural = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Positive = 1.0
    max_skipped_steps: Natural = 10
    save_every_steps: Count
    log_every_steps: Count = 10
    views: tuple[Literal["tensorboard", "wandb"], ...] = ()
    keep_checkpoints: Count = 2
    keep_every_steps: Count | None = None
    keep_best: bool = False
    probe: Probe | None = None
    background_save: bool = False
    may_differ: tuple[Text, ...] = ()
    heartbeat_s: Positive = 5.0
    stall_s: Positive = 1800.0  # longer than loading and exporting a large model


class Deepspeed(Section):
    """The DeepSpeed layout: a name in `ds_configs/` or a path to a JSON file."""

    config: Text


class Mntp(Section):
    """Masked next token prediction. `bert`: 80 % mask, 10 % random, 10 % kept; `all`: mask.

    A row is a block of documents that do not see each other. With `cross_documents` it is a
    run of documents that do, cut wherever the block ends: what the reference trains on.

    `held_out_blocks` is read in the recipes of older runs and refused: whole documents are held out
    now (`data.held_out_documents`).

    `cross_entropy`: `torch` in chunks, or liger-kernel's kernel, where it is installed, on a GPU.
    """

    mask_probability: Probability
    mask_policy: Literal["bert", "all"]
    mask_token: Text = "_"  # noqa: S105 (no password)
    cross_documents: bool = False
    held_out_blocks: Natural = 0
    evaluate_every_steps: Count = 100
    cross_entropy: Kernel = "torch"

    @model_serializer(mode="wrap")
    def _without_what_is_gone(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = whole(self)
        if not self.held_out_blocks:
            del found["held_out_blocks"]
        return found


class Simcse(Section):
    """InfoNCE: cosine similarities are multiplied by `scale` (1 / temperature)."""

    scale: Positive


class Supervised(Section):
    """Contrastive training on (query, positive, hard negatives): cosine similarities are multiplied
    by `scale`, or by what `scales` says for a data set.

    `instruction_format` stands before a text whose data set has an instruction. Candidates whose
    similarity exceeds the positive's by more than `false_negative_margin` are left out. With
    `matryoshka_dims` the loss is the mean over vectors cut to these widths, and whole.
    """

    scale: Positive
    scales: dict[str, Positive] = {}
    num_hard_negatives: Natural = 1
    instruction_format: Text = INSTRUCTION_FORMAT
    false_negative_margin: float | None = None
    matryoshka_dims: tuple[Count, ...] = ()


class TrainingRecipe(Section):
    """What every training run has."""

    kind: str
    run_dir: Text
    model: Model
    data: Data
    train: Train
    deepspeed: Deepspeed


class MntpRecipe(TrainingRecipe):
    """A run of masked next token prediction."""

    kind: Literal["mntp"]
    mntp: Mntp


class SimcseRecipe(TrainingRecipe):
    """A run of unsupervised SimCSE."""

    kind: Literal["simcse"]
    simcse: Simcse


class SupervisedRecipe(TrainingRecipe):
    """A run of supervised contrastive training."""

    kind: Literal["supervised"]
    supervised: Supervised


class EncoderSettings(Section):
    """How texts become vectors. `batch_tokens` bounds rows x longest row of one forward pass; null
    is 16384 on a GPU and 2048 on a CPU, whose caches hold no more.

    `adapters` (folders or hub names, PEFT's layout) are merged into the model in order; the model
    may be such an adapter itself. `text_format` is put around every text: what stands before it is
    read like an instruction, what stands after it is pooled (LLM2Vec's chat formats).

    attention "packed" puts rows one after another, without padding; the others pad."""

    model: Text
    adapters: tuple[Text, ...] = ()
    max_tokens: Annotated[int, Field(ge=8)] = 512
    batch_tokens: Count | None = None
    dtype: DType = "fp32"
    attention: Attention = "packed"
    causal: bool = False
    text_format: Annotated[str, Field(pattern=r"^[^{}]*\{text\}[^{}]*$")] = TEXT_FORMAT

    def facts(self) -> dict[str, Any]:
        """What makes the vectors, besides the model's content."""
        found = self.model_dump(mode="json", exclude={"model", "adapters", "batch_tokens"})
        if self.text_format == TEXT_FORMAT:  # as in what was made before there was another
            del found["text_format"]
        return found


class Corpus(Section):
    """What is embedded: a directory of shards, cut into work units of about equal work and
    `unit_rows` rows on average.

    A text is cut at `encoder.max_tokens`; or, with `chunk_tokens`, becomes a row for every so many
    tokens of it, of which neighbours share `chunk_overlap`."""

    input: Text
    unit_rows: Count = 4096
    chunk_tokens: Annotated[int, Field(ge=8)] | None = None
    chunk_overlap: Natural = 0


class EmbedRecipe(Section):
    """An offline embedding of a corpus.

    `schedule` says how workers share the units. claim: each takes what nobody has, by a lease in
    the output directory, and takes over a lease in which nothing has moved for `lease_s`. mpi: rank
    0 deals units to all ranks, and deals again what a rank has that is silent for `lease_s`. alone:
    no other worker is there. auto: mpi under mpirun, else claim.

    `vectors` is how a number is stored; `dims` keeps only so many numbers of a vector, the first;
    `normalize` divides what is kept by its length.
    """

    kind: Literal["embed"]
    output_dir: Text
    encoder: EncoderSettings
    corpus: Corpus
    schedule: Literal["auto", "alone", "claim", "mpi"] = "auto"
    vectors: VectorFormat = "fp32"
    dims: Count | None = None
    normalize: bool = False
    lease_s: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 60.0


class EvaluateRecipe(Section):
    """Scores of several encoders side by side, on local files and MTEB's tasks. Tasks by name;
    `instructions` stand before the texts of a task (of retrieval and reranking: of its queries).

    Workers share the pairs of encoder and task by leases, as an embedding's do. `reference` names
    published scores (toolkit/references) to lay beside those of encoders of the same names.
    """

    kind: Literal["evaluate"]
    output_dir: Text
    encoders: Annotated[dict[str, EncoderSettings], Field(min_length=1)]
    sts: dict[str, Text] = {}
    retrieval: dict[str, Retrieval] = {}
    classification: dict[str, Classification] = {}
    clustering: dict[str, Text] = {}
    pair_classification: dict[str, Text] = {}
    reranking: dict[str, Text] = {}
    words: dict[str, WordTask] = {}
    mteb: Mteb = Mteb()
    instructions: dict[str, str] = {}
    reference: Text | None = None
    lease_s: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 60.0


class Stage(Section):
    """One job of a pipeline: a recipe, and the values that this pipeline sets in it.

    In a text value `{key}` stands for the pipeline's own value, as in `{run_dir}/mntp/encoder`.
    """

    recipe: Text
    set: dict[str, str | int | float | bool | None] = {}


class PipelineModel(Section):
    """The base model of the first stage."""

    base: Text


class PipelineData(Section):
    """The training shards of all stages."""

    train: Text


class PipelineCorpus(Section):
    """The corpus that the last stage embeds."""

    input: Text


class PipelineRecipe(Section):
    """Stages in order; each becomes a job that depends on the one before."""

    kind: Literal["pipeline"]
    run_dir: Text
    model: PipelineModel
    data: PipelineData
    corpus: PipelineCorpus
    stages: Annotated[dict[str, Stage], Field(min_length=1)]


StageRecipe = MntpRecipe | SimcseRecipe | SupervisedRecipe | EmbedRecipe | EvaluateRecipe
Recipe = StageRecipe | PipelineRecipe
KINDS: dict[str, type[Recipe]] = {
    "mntp": MntpRecipe,
    "simcse": SimcseRecipe,
    "supervised": SupervisedRecipe,
    "embed": EmbedRecipe,
    "evaluate": EvaluateRecipe,
    "pipeline": PipelineRecipe,
}

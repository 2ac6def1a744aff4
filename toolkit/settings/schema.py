"""What a recipe may say: strict, frozen, typed settings.

Knows names, types and ranges of settings. Refuses to know where they come from and what they are
used for.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from toolkit.settings.domain_schema import DocumentsRecipe, MineRecipe, ReportRecipe
from toolkit.settings.merge_schema import Forgetting, MergeRecipe
from toolkit.settings.mixture_schema import Sources
from toolkit.settings.model_schema import Attention, Kernels, Model
from toolkit.settings.pipeline_schema import PipelineRecipe
from toolkit.settings.questions_schema import QuestionsRecipe
from toolkit.settings.section import (
    Count,
    Natural,
    Positive,
    Probability,
    Section,
    Seed,
    Text,
)
from toolkit.settings.storage_schema import ForStorage
from toolkit.settings.task_schema import (
    Baseline,
    Classification,
    Mteb,
    Probe,
    Retrieval,
    WordTask,
)

INSTRUCTION_FORMAT = "{instruction}; "  # put before a text; LLM2Vec's format
TEXT_FORMAT = "{text}"
EncoderDType = Literal["auto", "fp32", "bf16"]
Pooling = Literal["auto", "mean", "cls", "last", "weighted_mean", "max"]
VectorFormat = Literal["fp32", "fp16", "bf16", "int8", "binary"]
ChunkContext = Literal["chunk", "document"]


class Data(Section):
    """`train` is a directory of shards (of pairs for supervised training). MNTP and SimCSE also mix
    several: their paths, each with its share of the rows, 1 in all. `max_tokens` is the length of a
    row: where a text is cut, or (MNTP) the size of a block of documents.

    `held_out_documents` documents of each source, drawn by `train.seed`, are never trained on.
    MNTP's loss and accuracy on them are written to the metrics before the first step and after
    every `mntp.evaluate_every_steps` steps."""

    train: Sources
    max_tokens: Annotated[int, Field(ge=8)]
    held_out_documents: Natural = 0


class Train(Section):
    """The optimisation. The learning rate falls linearly to zero at step `horizon_steps`; the run
    stops at step `steps`, which may be much earlier, as in the reference.

    A micro-batch holds at most `micro_batch_rows` rows or, if `micro_batch_tokens` is given, as
    many rows as have about that many tokens together (packed attention only). The number of ranks
    must divide `global_batch_rows`; with `fit_ranks` it may be any, and the batch becomes the next
    multiple of it: for recipes that only try a cluster. A step whose loss or gradient is NaN or
    infinite is skipped; a run ends with an error after more than `max_skipped_steps` of them.
    `views` also write the metrics for the tools that they name.

    These checkpoints are kept: the newest `keep_checkpoints`, one per `keep_every_steps` steps and,
    with `keep_best`, the one with the best score of the `probe` or, without a probe, the lowest
    held-out loss (MNTP). `background_save` writes a checkpoint from copies in host memory while
    training goes on. Only the recipe that began a run directory may continue it, except for the
    keys that `may_differ` names.

    Every rank sends a heartbeat every `heartbeat_s` seconds. The job ends when a rank is silent for
    two of these intervals, or when no rank makes progress for `stall_s` seconds."""

    steps: Count
    horizon_steps: Count
    global_batch_rows: Count
    micro_batch_rows: Count
    micro_batch_tokens: Count | None = None
    fit_ranks: bool = False
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
    stall_s: Positive = 1800.0  # longer than it takes to load or export a large model


class Deepspeed(Section):
    """The DeepSpeed layout: a name in `ds_configs/` or a path to a JSON file."""

    config: Text


class Mntp(Section):
    """Masked next token prediction. `mask_policy` says what becomes of the chosen tokens. "bert":
    80 % become the mask token, 10 % a random token, 10 % stay; "all": all become the mask token.

    A row is a block of documents that do not attend to each other. With `cross_documents`, which
    the reference trains on, they do, and a document is cut wherever the block ends.

    `held_out_blocks` and `cross_entropy` may stand in the recipes of older runs: whole documents
    are held out now (`data.held_out_documents`), and `model.kernels` says what computes the loss.
    """

    mask_probability: Probability
    mask_policy: Literal["bert", "all"]
    mask_token: Text = "_"  # noqa: S105 (no password)
    cross_documents: bool = False
    held_out_blocks: Natural = 0
    evaluate_every_steps: Count = 100
    cross_entropy: Literal["torch"] = "torch"

    @model_serializer(mode="wrap")
    def _without_what_is_gone(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        settings: dict[str, Any] = whole(self)
        settings.pop("cross_entropy", None)
        if not self.held_out_blocks:
            settings.pop("held_out_blocks", None)  # left out where defaults are
        return settings


class Teacher(Section):
    """Distillation from another encoder, by its vectors of the same texts. `embeddings` is an
    output_dir of toolkit.encode over the texts that data_scripts/list_texts.py lists;
    `query_embeddings` is another one, for a teacher that reads queries with a prompt of their own.

    The loss is (1 - weight) x InfoNCE + weight x KL divergence. That is the divergence of the
    student's similarities from the teacher's, as distributions over the candidates of the global
    batch; the cosines of both are multiplied by `scale`. With weight 1 the teacher alone teaches.

    Candidates that the teacher finds nearer to the query than the positive are left out of InfoNCE:
    by more than `false_negative_margin`, or by more than `false_negative_ratio` times the cosine
    of the positive (both null: none is left out).
    """

    embeddings: Text
    query_embeddings: Text | None = None
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    scale: Positive = 20.0
    false_negative_margin: float | None = None
    false_negative_ratio: Positive | None = None


class Simcse(ForStorage):
    """InfoNCE: cosine similarities are multiplied by `scale` (1 / temperature)."""

    scale: Positive
    teacher: Teacher | None = None


class Supervised(ForStorage):
    """Contrastive training on (query, positive, hard negatives). Cosine similarities are multiplied
    by `scale`, or by the value in `scales` for the data set of the query.

    `instruction_format` is put before a text whose data set has an instruction. Candidates whose
    similarity exceeds that of the positive by more than `false_negative_margin` are left out of the
    loss. With `matryoshka_dims` the loss is the mean of the losses of the whole vectors and of the
    vectors cut to each of these widths. `teacher` adds distillation.
    """

    scale: Positive
    scales: dict[str, Positive] = {}
    num_hard_negatives: Natural = 1
    instruction_format: Text = INSTRUCTION_FORMAT
    false_negative_margin: float | None = None
    matryoshka_dims: tuple[Count, ...] = ()
    teacher: Teacher | None = None


class Graded(Section):
    """Training on the grades of pairs of texts (CoSENT): `data.train` is a .tsv (score first) or a
    .csv (score last) of them, as STS tasks are. Differences of cosines are multiplied by `scale`.
    """

    scale: Positive = 20.0


class TrainingRecipe(Section):
    """The settings that every kind of training run has."""

    kind: str
    run_dir: Text
    model: Model
    data: Data
    train: Train
    deepspeed: Deepspeed

    @property
    def teacher(self) -> Teacher | None:
        """The teacher of the objective (the section of the recipe's kind), if it names one."""
        found: Teacher | None = getattr(getattr(self, self.kind), "teacher", None)
        return found


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


class GradedRecipe(TrainingRecipe):
    """A run on graded pairs of texts."""

    kind: Literal["graded"]
    graded: Graded


class EncoderSettings(Section):
    """How texts become vectors. `batch_tokens` limits a forward pass: its rows times its longest
    row. null is 16384 on a GPU and 2048 on a CPU, whose caches hold no more.

    `adapters` (folders or hub names, in PEFT's file format) are merged into the model in order; the
    model may be such an adapter itself. `text_format` is put around every text: what comes before
    the text is treated like an instruction, what comes after it is pooled with it (LLM2Vec's chat
    formats).

    A folder with a modules.json (of sentence-transformers) says itself how its texts become
    vectors. `pooling` replaces its pooling, and `prompt` its default prompt: a text, or the name of
    a prompt that the folder declares; "" is none. `causal` makes attention causal where the folder
    does not say so. With `echo` a causal model reads a text twice, and the second is pooled.

    `dtype` auto is bf16 on a device with instructions for it (a GPU from Ampere on; a CPU with
    avx512_bf16 or AMX) and fp32 elsewhere. All workers of an encoding compute in the same type,
    whatever their devices: that of its plan.

    On a GPU, `kernels` is as in training; `fp8` (of bf16, from Hopper on) multiplies in 8 bits
    (`model/fp8.py`).

    attention "packed" puts rows one after another, without padding; the other values pad. A model
    that cannot be packed is padded."""

    model: Text
    adapters: tuple[Text, ...] = ()
    max_tokens: Annotated[int, Field(ge=8)] = 512
    batch_tokens: Count | None = None
    dtype: EncoderDType = "fp32"
    fp8: bool = False
    kernels: Kernels = "auto"
    attention: Attention = "packed"
    causal: bool = False
    echo: bool = False
    pooling: Pooling = "auto"
    prompt: str | None = None
    text_format: Annotated[str, Field(pattern=r"^[^{}]*\{text\}[^{}]*$")] = TEXT_FORMAT

    def facts(self) -> dict[str, Any]:
        """The settings that decide the vectors, besides the content of the model. `dtype` must be
        settled: "auto" says nothing about the vectors."""
        assert self.dtype != "auto"
        unsaid = {"model", "adapters", "batch_tokens", "kernels"}
        settings = self.model_dump(mode="json", exclude=unsaid)
        # Left out in encodings made before the keys existed.
        unused = {"text_format": TEXT_FORMAT, "pooling": "auto", "prompt": None, "echo": False}
        unused |= {"fp8": False}
        return {key: value for key, value in settings.items() if unused.get(key, ...) != value}


class Corpus(Section):
    """The texts to embed: a directory of shards, divided into units of about equal work and
    `unit_rows` rows on average.

    A text is cut at `encoder.max_tokens`. With `chunk_tokens` it becomes several rows instead, of
    `chunk_tokens` tokens each, and neighbouring rows share `chunk_overlap` tokens.

    `chunk_context` is what the model reads for a chunk. chunk: the chunk alone. document: the whole
    document, up to `encoder.max_tokens`, of which the states of the chunk's own tokens are pooled
    (late chunking); a longer document is read in windows that overlap."""

    input: Text
    unit_rows: Count = 4096
    chunk_tokens: Annotated[int, Field(ge=8)] | None = None
    chunk_overlap: Natural = 0
    chunk_context: ChunkContext = "chunk"


class EmbedRecipe(Section):
    """An offline embedding of a corpus.

    `schedule` says how workers share the units. claim: each worker takes a free unit by a lease in
    the output directory, and takes over a lease that has not changed for `lease_s` seconds. mpi:
    rank 0 deals units to all ranks, and deals the units of a rank again that is silent for
    `lease_s` seconds. alone: there is no other worker. auto: mpi under mpirun, otherwise claim.

    `vectors` is the format in which numbers are stored; `dims` keeps only the first numbers of each
    vector; `normalize` divides a vector, after that cut, by its length.

    `reuse` is an older encoding, finished, by the same model and settings: texts that stand in it
    get their vectors from there, and only the others are embedded.
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
    reuse: Text | None = None


class EvaluateRecipe(Section):
    """Scores of several encoders side by side, on local files and on tasks of MTEB. Keys are names
    of tasks; `instructions` gives, by task, the text to put before each text of that task (for
    retrieval and reranking: before each query).

    `baselines` are scored beside the encoders, on the tasks of `retrieval` and `reranking`: "bm25"
    ranks by words. `fusion` also scores the ranking of each encoder fused with that of BM25.

    Workers share the pairs of encoder and task by leases, as those of an embedding do. With
    `share_corpora` they also embed the documents of retrieval and reranking together, into
    `output_dir`, where they are kept; without it a worker embeds those of its task alone, in
    memory.

    `reference` names published scores (toolkit/references) to compare with encoders of the same
    names. `forgetting` chooses one of the encoders by their scores, and OUT/chosen.json names it.
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
    baselines: tuple[Baseline, ...] = ()
    fusion: bool = False
    instructions: dict[str, str] = {}
    share_corpora: bool = True
    reference: Text | None = None
    forgetting: Forgetting | None = None
    lease_s: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 60.0


SharedRecipe = EmbedRecipe | QuestionsRecipe  # whose work is divided into units
StageRecipe = (
    MntpRecipe
    | SimcseRecipe
    | SupervisedRecipe
    | GradedRecipe
    | SharedRecipe
    | EvaluateRecipe
    | DocumentsRecipe
    | MineRecipe
    | MergeRecipe
    | ReportRecipe
)
Recipe = StageRecipe | PipelineRecipe
KINDS: dict[str, type[Recipe]] = {
    "mntp": MntpRecipe,
    "simcse": SimcseRecipe,
    "supervised": SupervisedRecipe,
    "graded": GradedRecipe,
    "embed": EmbedRecipe,
    "questions": QuestionsRecipe,
    "evaluate": EvaluateRecipe,
    "documents": DocumentsRecipe,
    "mine": MineRecipe,
    "merge": MergeRecipe,
    "report": ReportRecipe,
    "pipeline": PipelineRecipe,
}

"""A trained model as a folder that others load: our encoder, sentence-transformers, plain
transformers, llm2vec, PEFT."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PretrainedConfig

from toolkit.base.errors import BadInput
from toolkit.base.files import (
    committed_directory,
    is_committed,
    read_json,
    sha256_of,
    write_atomic,
    write_json,
)
from toolkit.base.layout import CARD_FILE, ORIGIN_FILE, WEIGHT_DIR
from toolkit.base.sealed import content_digest
from toolkit.model.adapters import Chain, chain_of
from toolkit.model.backbone import DTYPES, load_config
from toolkit.model.declared import Use
from toolkit.model.llm2vec_format import config_of_4_44, rewrite_for_llm2vec
from toolkit.model.tensor_file import StoredTensors, TensorWriter
from toolkit.model.tokenizer import load_tokenizer, training_tokenizer
from toolkit.model.vector_rules import PLAIN_RULES, trained_rules
from toolkit.model.weights import (
    ADAPTER_FILE,
    Adapter,
    base_folder,
    instruction_format_of,
    merge_weights,
    model_digest,
    stages_of,
    weights_digest,
    write_encoder_files,
)
from toolkit.settings.model_schema import DType, Lora, Model
from toolkit.settings.model_source import ADAPTER_CONFIG, ModelSource, resolve_model
from toolkit.settings.schema import SupervisedRecipe, TrainingRecipe
from toolkit.training.card import (
    CardFacts,
    model_card,
    public_name,
    read_scores,
    stage_of,
)
from toolkit.training.checkpoint import Checkpoint, load_newest
from toolkit.training.runs import refuse_taken, run_recipe

MAX_TOKENS = 512
Form = Literal["merged", "llm2vec", "peft"]


@dataclasses.dataclass(frozen=True)
class Export:
    """How an export is written: its format, the type of its weights (None: as trained, or as the
    base has them), and a file of scores for its card. `base_name`: what the configuration and the
    card of an adapter call the model that the first stage began with, whose tokenizer is then not
    written again."""

    form: Form = "merged"
    dtype: DType | None = None
    scores: Path | None = None
    base_name: str | None = None


def write_encoder(run_dir: Path, *, out: Path, export: Export | None = None) -> int:
    """Write a run's newest checkpoint to `out`, all or nothing: merged into its base or, as `peft`,
    its adapter alone. Returns the checkpoint's step.

    Raises `BadInput` when the run has no whole checkpoint, `out` is taken, or the format cannot
    hold the model.
    """
    export = export or Export()
    refuse_taken(out)
    recipe = run_recipe(run_dir)
    checkpoint = load_newest(run_dir)
    if checkpoint is None:
        raise BadInput(f"{run_dir}: has no whole checkpoint to export; train it first")
    base = resolve_model(recipe.model.base)
    folder = base_folder(base)
    # Adapters on other weights would make a model that nobody has trained.
    if model_digest(folder) != checkpoint.state["base_digest"]:
        raise BadInput(
            f"{run_dir}: its base model {base.reference} has changed since it was trained; "
            "bring back the old content"
        )
    stage = stage_of(recipe, step=checkpoint.step, data_digest=checkpoint.state["data_digest"])
    if recipe.model.lora is not None:
        # An adapter is merged into these weights only, and stages after it know it by its digest.
        stage["base_digest"] = weights_digest(folder)
        stage["adapter_digest"] = sha256_of(checkpoint.folder / WEIGHT_DIR / ADAPTER_FILE)
    stages = [*stages_of(folder), stage]
    config = load_config(base)
    facts = CardFacts(
        form=export.form,
        base=export.base_name or (stage if export.form == "peft" else stages[0])["base"],
        stages=stages,
        width=config.hidden_size,
        max_tokens=max_tokens_of(config),
        instruction_format=(
            recipe.supervised.instruction_format
            if isinstance(recipe, SupervisedRecipe)
            else instruction_format_of(folder)
        ),
        recipe=recipe,
        is_chained=export.base_name is not None and len(stages) > 1,
        scores=read_scores(export.scores) if export.scores else None,
    )
    origin = {"kind": recipe.kind, "step": checkpoint.step}
    dtype = export.dtype or recipe.model.dtype
    _check_form(export, config=config, model=recipe.model)
    with committed_directory(out) as exported:
        if export.form == "peft":
            _write_adapter(exported, checkpoint=checkpoint, recipe=recipe, base=base, export=export)
        else:
            _merge_checkpoint(
                checkpoint, folder=folder, lora=recipe.model.lora, dtype=dtype, out=exported
            )
            form, model = export.form, recipe.model
            _write_files(
                exported, config=config, tokenizer=base, form=form, dtype=dtype, model=model
            )
        seal(exported, name=out.name, origin=origin, facts=facts)
    return checkpoint.step


def write_chain(
    model: str, *, adapters: Sequence[str], out: Path, export: Export | None = None
) -> tuple[str, ...]:
    """Merge adapters in PEFT's layout into their base and write `out`, all or nothing; returns the
    names of the base and the adapters. See `chain_of`.

    Weights are bf16 where the base's are, else fp32, unless `export.dtype` says otherwise.
    """
    export = export or Export()
    refuse_taken(out)
    if export.form == "peft":
        raise BadInput("--format peft: needs a run that trained an adapter; give its directory")
    chain = chain_of(model, adapters=adapters)
    folder, config = base_folder(chain.base), load_config(chain.base)
    chain.check(Use(causal=False))
    _check_form(export, config=config)
    dtype = export.dtype or stored_dtype(config)
    bases = (chain.base.reference, *chain.names)
    stages = stages_of_chain(chain)
    facts = CardFacts(
        form=export.form,
        base=stages[0]["base"] if stages else public_name(chain.base.reference),
        stages=stages,
        width=config.hidden_size,
        max_tokens=max_tokens_of(config),
        instruction_format=chain.instruction_format(),
        scores=read_scores(export.scores) if export.scores else None,
    )
    with committed_directory(out) as exported:
        merge_weights(folder, adapters=chain.adapters(), dtype=dtype, out=exported)
        tokenizer = chain.tokenizer
        _write_files(exported, config=config, tokenizer=tokenizer, form=export.form, dtype=dtype)
        seal(exported, name=out.name, origin={"kind": "merged", "step": 0}, facts=facts)
    return bases


def stages_of_chain(chain: Chain) -> list[dict[str, Any]]:
    """The training stages of a base and of the adapters on it, first to last."""
    bases = [chain.base.reference, *chain.names]
    added = [
        {
            **(stages_of(place) or [{"kind": f"adapter {public_name(name)}"}])[-1],
            "base": public_name(below),
        }
        for below, name, place in zip(bases, chain.names, chain.folders, strict=False)
    ]
    return [*stages_of(base_folder(chain.base)), *added]


def stored_dtype(config: PretrainedConfig) -> DType:
    """The type of the weights that are made from a model: bf16 where its own are, else fp32."""
    stored = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return "bf16" if stored == "bfloat16" else "fp32"


def check_encoder(out: Path) -> None:
    """Compare every file of an exported folder with its digest, except its card, which people
    edit. `BadInput` names the file that is damaged or missing."""
    again = f"export it again to another folder, or copy {out} again"
    if not is_committed(out):
        raise BadInput(f"{out}: is not a whole encoder (no COMMITTED marker); {again}")
    origin: dict[str, Any] = read_json(out / ORIGIN_FILE)
    if "sha256" not in origin and "digest" not in origin:
        raise BadInput(f"{out / ORIGIN_FILE}: records no digests (an older version?); {again}")
    if origin.pop("digest", None) != content_digest(origin):
        raise BadInput(f"{out / ORIGIN_FILE}: is damaged (its digest differs); {again}")
    for name, digest in origin["sha256"].items():
        if not (out / name).is_file():
            raise BadInput(f"{out / name}: is missing from the encoder; {again}")
        if sha256_of(out / name) != digest:
            raise BadInput(f"{out / name}: is damaged (its SHA-256 differs); {again}")


def encoder_step(out: Path) -> int | None:
    """The training step whose weights an exported folder holds; None if it is no whole export."""
    if not is_committed(out) or not (out / ORIGIN_FILE).is_file():
        return None
    return int(read_json(out / ORIGIN_FILE)["step"])


def max_tokens_of(config: PretrainedConfig) -> int:
    """Where other tools cut the texts of an export."""
    return min(MAX_TOKENS, int(config.max_position_embeddings))


def _check_form(export: Export, *, config: PretrainedConfig, model: Model | None = None) -> None:
    """Refuse, before hours of merging, what a format cannot hold and what it would ignore."""
    if export.form != "merged" and model and trained_rules(model) != PLAIN_RULES:
        raise BadInput(
            f"--format {export.form}: cannot say {model.pooling_text}, only mean and skip; give "
            "--format merged"
        )
    if export.form == "llm2vec":
        config_of_4_44(config.to_dict())
    if export.form != "peft" and export.base_name:
        raise BadInput(f"--base-name {export.base_name}: goes with --format peft only")


def _merge_checkpoint(
    checkpoint: Checkpoint, *, folder: Path, lora: Lora | None, dtype: str, out: Path
) -> None:
    if lora is None:
        merge_weights(folder, replaced=checkpoint.weights, dtype=dtype, out=out)
        return
    scale = lora.alpha / lora.rank  # LoRA's own, as PEFT applies it
    adapter = Adapter.of(checkpoint.weights, scale=scale, source="the checkpoint")
    merge_weights(folder, adapters=[adapter], dtype=dtype, out=out)


def _write_adapter(
    out: Path,
    *,
    checkpoint: Checkpoint,
    recipe: TrainingRecipe,
    base: ModelSource,
    export: Export,
) -> None:
    weights = checkpoint.folder / WEIGHT_DIR
    if recipe.model.lora is None:
        run_dir = checkpoint.folder.parents[1]
        raise BadInput(f"{run_dir}: trained all weights (model.lora is null): it has no adapter")
    if export.dtype in (None, "fp32"):  # as it was trained
        shutil.copyfile(weights / ADAPTER_FILE, out / ADAPTER_FILE)
    else:
        _write_rounded(weights / ADAPTER_FILE, out=out / ADAPTER_FILE, dtype=DTYPES[export.dtype])
    settings = read_json(weights / ADAPTER_CONFIG)
    # The checkpoint may name a relative path, which is another folder for whoever loads this.
    place = base.name if base.folder is None else str(base.folder.resolve())
    name = export.base_name or place
    write_json(out / ADAPTER_CONFIG, {**settings, "base_model_name_or_path": name})
    if export.base_name is None:  # otherwise whoever has that base has its tokenizer
        load_tokenizer(base).save_pretrained(out)


def _write_rounded(file: Path, *, out: Path, dtype: torch.dtype) -> None:
    tensors = StoredTensors([file])
    writer = TensorWriter(out, shapes={name: tensors.shape(name) for name in tensors}, dtype=dtype)
    for name, tensor in tensors.items():
        writer.put(name, tensor)
    writer.close()


def _write_files(
    out: Path,
    *,
    config: PretrainedConfig,
    tokenizer: ModelSource,
    form: Form,
    dtype: str,
    model: Model | None = None,
) -> None:
    """Everything but the weights; `model` are the settings of the last stage, if there is one."""
    loaded, max_tokens = load_tokenizer(tokenizer), max_tokens_of(config)
    rules = PLAIN_RULES
    if model is not None:
        loaded, rules = training_tokenizer(tokenizer, model=model), trained_rules(model)
    write_encoder_files(
        out, config=config, tokenizer=loaded, max_tokens=max_tokens, dtype=dtype, rules=rules
    )
    if form == "llm2vec":
        rewrite_for_llm2vec(out, tokenizer=loaded, max_tokens=max_tokens)


def seal(out: Path, *, name: str, origin: dict[str, Any], facts: CardFacts) -> None:
    """Write the last files: the origin, with the digests of all other files, and the card."""
    # Last, since it records the digests of all files that are there by now.
    content = {
        **origin,
        "stages": list(facts.stages),
        "instruction_format": facts.instruction_format,
        "sha256": {
            str(path.relative_to(out)): sha256_of(path)
            for path in sorted(out.rglob("*"))
            if path.is_file()
        },
    }
    write_json(out / ORIGIN_FILE, {**content, "digest": content_digest(content)})
    write_atomic(out / CARD_FILE, model_card(facts, name=name))

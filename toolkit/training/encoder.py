"""A run's newest checkpoint as the folder that everything else loads: our encoder,
sentence-transformers, plain transformers."""

from pathlib import Path
from typing import Any

from toolkit.config import load_recipe
from toolkit.files import (
    BadInput,
    committed_directory,
    is_committed,
    read_json,
    sha256_of,
    write_json,
)
from toolkit.model.backbone import load_config
from toolkit.model.tokenizer import load_tokenizer
from toolkit.model.weights import (
    ORIGIN_FILE,
    base_folder,
    instruction_format_of,
    merge_weights,
    model_digest,
    write_encoder_files,
)
from toolkit.schema import SupervisedRecipe, TrainingRecipe
from toolkit.text.manifest import content_digest
from toolkit.training.checkpoint import load_newest

MAX_TOKENS = 512


def write_encoder(run_dir: Path, *, out: Path) -> int:
    """Merge base and newest checkpoint into `out`, all or nothing; returns the checkpoint's step.

    Raises `BadInput` when the run has no whole checkpoint, or `out` is taken.
    """
    if is_committed(out) or (out.is_dir() and any(out.iterdir())):
        raise BadInput(f"{out}: already there; export to another folder, or remove it first")
    recipe = run_recipe(run_dir)
    checkpoint = load_newest(run_dir)
    if checkpoint is None:
        raise BadInput(f"{run_dir}: has no whole checkpoint to export; train it first")
    base = recipe.model.base
    folder = base_folder(base)
    if model_digest(folder) != checkpoint.state["base_digest"]:
        raise BadInput(f"{run_dir}: its base model {base} has other content now; bring that back")
    config = load_config(base)
    with committed_directory(out) as exported:
        merge_weights(
            folder,
            trained=checkpoint.weights,
            lora=recipe.model.lora,
            dtype=recipe.model.dtype,
            out=exported,
        )
        write_encoder_files(
            exported,
            config=config,
            tokenizer=load_tokenizer(base),
            max_tokens=min(MAX_TOKENS, config.max_position_embeddings),
            dtype=recipe.model.dtype,
        )
        origin = {
            "kind": recipe.kind,
            "step": checkpoint.step,
            "instruction_format": (
                recipe.supervised.instruction_format
                if isinstance(recipe, SupervisedRecipe)
                else instruction_format_of(folder)
            ),
            "sha256": {
                str(path.relative_to(exported)): sha256_of(path)
                for path in sorted(exported.rglob("*"))
                if path.is_file()
            },
        }
        write_json(exported / ORIGIN_FILE, {**origin, "digest": content_digest(origin)})
    return checkpoint.step


def check_encoder(out: Path) -> None:
    """Compare every file of an exported folder with its digest; `BadInput` names the one that is
    damaged or missing."""
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
    """The training step whose weights an exported folder holds; None when there is none."""
    if not is_committed(out) or not (out / ORIGIN_FILE).is_file():
        return None
    return int(read_json(out / ORIGIN_FILE)["step"])


def run_recipe(run_dir: Path) -> TrainingRecipe:
    """The recipe of a training run, from its own config.yaml."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise BadInput(f"{run_dir}: is not a run directory (no config.yaml)")
    recipe = load_recipe(str(path))
    if not isinstance(recipe, TrainingRecipe):
        raise BadInput(f"{run_dir}: is a run of kind {recipe.kind!r}, not a training run")
    return recipe

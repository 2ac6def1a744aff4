"""Which rows make which unit of work, and what identifies an encoding.

Knows counts and digests. The same corpus and the same settings always give the same units, so a
restart with other workers goes on where the last one stood.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from toolkit.files import BadInput, read_json, write_json
from toolkit.schema import EmbedRecipe

PLAN_FILE = "plan.json"


@dataclasses.dataclass(frozen=True)
class Unit:
    """Rows start..stop of the corpus."""

    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The stem of the unit's files."""
        return f"{self.number:05d}"


def units(num_rows: int, *, unit_rows: int) -> list[Unit]:
    """The units of a corpus, in order, without a gap."""
    starts = range(0, num_rows, unit_rows)
    return [Unit(n, s, min(s + unit_rows, num_rows)) for n, s in enumerate(starts)]


def share(all_units: list[Unit], *, index: int, count: int) -> list[Unit]:
    """The units of worker `index` of `count`: every count-th, so that long stretches are shared."""
    return all_units[index::count]


def identity(
    recipe: EmbedRecipe, *, corpus_digest: str, model_digest: str, num_rows: int
) -> dict[str, Any]:
    """What an encoding is: equal identities may share an output directory.

    Names and paths are not part of it, digests are; nor is `batch_tokens`, which moves
    a vector by no more than rounding.
    """
    settings = recipe.encoder.model_dump(mode="json", exclude={"model", "batch_tokens"})
    facts = {
        "corpus": corpus_digest,
        "model": model_digest,
        "rows": num_rows,
        "unit_rows": recipe.corpus.unit_rows,
        "encoder": settings,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return {**facts, "digest": digest}


def claim_directory(output_dir: Path, *, facts: dict[str, Any], model: str, corpus: str) -> None:
    """Write the plan into a new output directory, or check that the one there is the same.

    Raises `BadInput` with the differing facts: vectors of two models must never mix.
    """
    path = output_dir / PLAN_FILE
    if output_dir.exists() and not output_dir.is_dir():
        raise BadInput(f"output_dir={output_dir}: is a file; choose a directory")
    # Listed BEFORE the plan is looked for: another worker may be writing it at this moment.
    foreign = output_dir.is_dir() and any(not _ours(e.name) for e in output_dir.iterdir())
    if path.is_file():
        there = read_json(path)
        differing = [key for key in facts if there.get(key) != facts[key] and key != "digest"]
        if differing:
            raise BadInput(
                f"output_dir={output_dir} holds an encoding of another "
                f"{' and '.join(differing)}; choose another output_dir"
            )
        return
    if foreign:
        raise BadInput(f"output_dir={output_dir} is neither empty nor an encoding; choose another")
    write_json(path, {**facts, "model_path": model, "corpus_path": corpus})


def _ours(name: str) -> bool:
    """Whether a new output directory may hold this: logs, or a plan that is being written."""
    return name == "logs" or name.startswith(f".{PLAN_FILE}.")

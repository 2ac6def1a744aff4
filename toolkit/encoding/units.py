"""Which rows make which unit of work, and what identifies an encoding.

Knows counts and digests. The same corpus and the same settings always give the same units, so a
restart with other workers goes on where the last one stood. Shapes: N rows of the corpus.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import BadInput
from toolkit.base.files import create_json, digest_of, read_json
from toolkit.base.layout import LAUNCHED_FILE, LOG_DIR, PLAN_FILE, PREFETCHED_FILE
from toolkit.settings.schema import EmbedRecipe

FORMAT = "toolkit-encoding/2"
CHARS_PER_TOKEN = 4  # of English text; what counts is that units are about equal
CHARS_PER_ROW = 32  # what a row costs beside its text
MAX_ROWS_FACTOR = 4
NO_FACTS = ("digest", "model_path", "adapter_paths", "corpus_path")  # of what a plan says
NO_PLAN = ("units", "manifest_sha256")  # of what a manifest says


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


@dataclasses.dataclass(frozen=True)
class ChunkRules:
    """Tokens of a chunk, with those that a text begins and ends with, and how many of its own
    neighbours share."""

    tokens: int
    overlap: int


def bounds(
    num_chars_N: NDArray[np.int64],
    *,
    unit_rows: int,
    max_tokens: int,
    chunks: ChunkRules | None = None,
) -> list[int]:
    """Where the units of a corpus begin, and its end: `unit_rows` rows a unit on average, and about
    equal work in each, judged by the characters that a text has before the limit cuts it.

    No unit has more than `MAX_ROWS_FACTOR` times as many rows: its vectors are in memory at once.
    With `chunks` a row of the output is a chunk, as many as the characters let expect.
    """
    num_rows = len(num_chars_N)
    if chunks:
        step_chars = (chunks.tokens - chunks.overlap) * CHARS_PER_TOKEN
        chunks_N = np.maximum(1, -(-num_chars_N // step_chars))
        work_N = num_chars_N + (chunks.overlap * CHARS_PER_TOKEN + CHARS_PER_ROW) * chunks_N
        num_units = -(-int(chunks_N.sum()) // unit_rows)
    else:
        work_N = np.minimum(num_chars_N, max_tokens * CHARS_PER_TOKEN)
        work_N += CHARS_PER_ROW
        num_units = -(-num_rows // unit_rows)
    done_N = np.cumsum(work_N, out=work_N)  # in its place: of 100 M rows each array is 0.8 GB
    targets = done_N[-1] * np.arange(1, num_units) / num_units if num_rows else []
    inner = (np.searchsorted(done_N, targets) + 1).tolist()
    starts = [0]
    for end in [*inner, num_rows]:
        rows = end - starts[-1]
        if rows > 0:
            pieces = -(-rows // (MAX_ROWS_FACTOR * unit_rows))
            start = starts[-1]
            starts += [start + rows * piece // pieces for piece in range(1, pieces + 1)]
    return starts


def units(starts: Sequence[int]) -> list[Unit]:
    """The units between `bounds`, in order, without a gap."""
    pairs = enumerate(itertools.pairwise(starts))
    return [Unit(number, start, stop) for number, (start, stop) in pairs]


def share(all_units: list[Unit], *, index: int, count: int) -> list[Unit]:
    """The units of worker `index` of `count`: every count-th, so that long stretches are shared."""
    return all_units[index::count]


def identity(
    recipe: EmbedRecipe,
    *,
    corpus_digest: str,
    model_digest: str,
    num_chars_N: NDArray[np.int64],
    chunks: ChunkRules | None = None,
) -> dict[str, Any]:
    """What an encoding is: equal identities may share an output directory.

    Names and paths are not part of it, digests are; nor is `batch_tokens`, which moves
    a vector by no more than rounding, nor who does the work.
    """
    unit_rows, max_tokens = recipe.corpus.unit_rows, recipe.encoder.max_tokens
    facts = {
        "format": FORMAT,
        "corpus": corpus_digest,
        "model": model_digest,
        "rows": len(num_chars_N),
        "unit_rows": unit_rows,
        "encoder": recipe.encoder.facts(),
        "output": recipe.model_dump(mode="json", include={"vectors", "dims", "normalize"}),
        "bounds": bounds(num_chars_N, unit_rows=unit_rows, max_tokens=max_tokens, chunks=chunks),
    }
    if chunks:
        facts["chunks"] = dataclasses.asdict(chunks)
    return {**facts, "digest": facts_digest(facts)}


def facts_digest(told: Mapping[str, Any]) -> str:
    """What `digest` says in a plan, or a manifest that repeats it: of all facts that stand there.
    Who edits one has another encoding, of which the units are not."""
    others = {*NO_FACTS, *NO_PLAN}
    facts = {key: value for key, value in told.items() if key not in others}
    return digest_of(facts)


def check_facts(told: Mapping[str, Any], *, source: Path, advice: str) -> None:
    """Raise `BadInput` when a plan or manifest has facts that are not those of its digest."""
    if told["digest"] != facts_digest(told):
        raise BadInput(f"{source}: is damaged (its digest is not that of its facts); {advice}")


def claim_directory(
    output_dir: Path,
    *,
    facts: dict[str, Any],
    model: str,
    corpus: str,
    adapters: Sequence[str] = (),
) -> None:
    """Create the plan in a new output directory, or check that the one there is the same. Of two
    workers with other facts that arrive together one has the directory.

    Raises `BadInput` with the differing facts: vectors of two models must never mix.
    """
    path = output_dir / PLAN_FILE
    if output_dir.exists() and not output_dir.is_dir():
        raise BadInput(f"output_dir={output_dir}: is a file; choose a directory")
    # Listed BEFORE the plan is looked for: another worker may be writing it at this moment.
    foreign = output_dir.is_dir() and any(not _ours(e.name) for e in output_dir.iterdir())
    if not path.is_file():
        if foreign:
            raise BadInput(
                f"output_dir={output_dir} is neither empty nor an encoding; choose another"
            )
        paths = {"model_path": model, "adapter_paths": list(adapters), "corpus_path": corpus}
        create_json(path, {**facts, **paths})
    # Read by whoever has created it too: another worker may have been quicker.
    _require_same(output_dir, there=read_json(path), facts=facts)


def _require_same(output_dir: Path, *, there: Any, facts: dict[str, Any]) -> None:
    damaged = f"{output_dir / PLAN_FILE}: is damaged; choose another output_dir"
    if not isinstance(there, dict):
        raise BadInput(damaged)
    differing = [
        key
        for key in {**facts, **there}
        if key not in NO_FACTS and there.get(key) != facts.get(key)
    ]
    if len(differing) > 1 and "bounds" in differing:  # they follow from the others
        differing.remove("bounds")
    if differing:
        raise BadInput(
            f"output_dir={output_dir} holds an encoding of another "
            f"{' and '.join(differing)}; choose another output_dir"
        )
    # Of facts that are the same.
    if there.get("digest") != facts["digest"] or there["digest"] != facts_digest(there):
        raise BadInput(damaged)


def _ours(name: str) -> bool:
    """Whether a new output directory may hold this: what was written when the job was launched, or
    a plan that is being written."""
    return name in (LOG_DIR, LAUNCHED_FILE, PREFETCHED_FILE) or name.startswith(f".{PLAN_FILE}.")

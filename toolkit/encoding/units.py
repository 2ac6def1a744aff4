"""Which rows make which unit of work, and what identifies an encoding.

Knows counts and digests. The same corpus and the same settings always give the same units, so that
a restart with other workers goes on where the last one stopped. Shapes: N rows of the corpus.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import BadInput
from toolkit.base.files import create_json, digest_of, read_json
from toolkit.base.layout import LAUNCHED_FILE, LOG_DIR, PLAN_FILE, PREFETCHED_FILE
from toolkit.settings.model_schema import DType
from toolkit.settings.schema import ChunkContext, EmbedRecipe
from toolkit.text.tally import Tally

FORMAT = "toolkit-encoding/2"
CHARS_PER_TOKEN = 4  # in English text; units only have to be about equal
CHARS_PER_ROW = 32  # the work that a row costs beside its text, in characters
MAX_ROWS_FACTOR = 4
# Keys of a plan that are no part of its identity, and keys of a manifest that the plan lacks.
NO_FACTS = ("digest", "model_path", "adapter_paths", "corpus_path", "source")
NO_PLAN = ("units", "counts", "manifest_sha256")


@dataclasses.dataclass(frozen=True)
class Unit:
    """The rows of the corpus from `start` to before `stop`."""

    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The stem of the unit's files."""
        return f"{self.number:05d}"


@dataclasses.dataclass(frozen=True)
class ChunkRules:
    """The tokens of a chunk, with the special ones at its beginning and end, how many of its own
    tokens it shares with each neighbour, and what the model reads for it."""

    tokens: int
    overlap: int
    context: ChunkContext = "chunk"

    @property
    def is_late(self) -> bool:
        """Whether a document is read before it is cut into chunks, not after."""
        return self.context == "document"

    def facts(self) -> dict[str, Any]:
        """What of this makes an encoding what it is. Chunks that are read alone say nothing of
        their context, as before there was another one."""
        facts = {"tokens": self.tokens, "overlap": self.overlap}
        return {**facts, "context": self.context} if self.is_late else facts


def bounds(
    num_chars_N: NDArray[np.int64],
    *,
    unit_rows: int,
    max_tokens: int,
    chunks: ChunkRules | None = None,
) -> list[int]:
    """The first row of each unit, and the end of the corpus: `unit_rows` rows per unit on average,
    and about equal work in each, estimated from the characters that the limit leaves of a text.

    No unit has more than `MAX_ROWS_FACTOR` times as many rows, since its vectors are all in memory.
    With `chunks` a row of the output is a chunk, and the characters give their expected number.
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
    done_N = np.cumsum(work_N, out=work_N)  # in place: with 100 M rows each array takes 0.8 GB
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
    """The units between neighbouring `bounds`, in order."""
    pairs = enumerate(itertools.pairwise(starts))
    return [Unit(number, start, stop) for number, (start, stop) in pairs]


def share(all_units: list[Unit], *, index: int, count: int) -> list[Unit]:
    """The units of worker `index` of `count`: every `count`-th one from number `index` on."""
    return all_units[index::count]


def identity(
    recipe: EmbedRecipe,
    *,
    corpus_digest: str,
    model_digest: str,
    num_chars_N: NDArray[np.int64],
    chunks: ChunkRules | None = None,
) -> dict[str, Any]:
    """The facts that make an encoding what it is: only equal ones may share an output directory.

    They contain digests, but no names or paths, not `batch_tokens` (which changes vectors by
    rounding only), and nothing about who does the work.
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
        facts["chunks"] = chunks.facts()
    return {**facts, "digest": facts_digest(facts)}


def facts_digest(content: Mapping[str, Any]) -> str:
    """The digest of all facts in a plan, or in a manifest that repeats it. Whoever edits a fact
    changes the digest, so that the units no longer belong to it."""
    others = {*NO_FACTS, *NO_PLAN}
    facts = {key: value for key, value in content.items() if key not in others}
    return digest_of(facts)


def check_facts(content: Mapping[str, Any], *, source: Path, advice: str) -> None:
    """Raise `BadInput` when the facts in a plan or manifest do not match its digest."""
    if content["digest"] != facts_digest(content):
        raise BadInput(f"{source}: is damaged (its digest is not that of its facts); {advice}")


def planned_dtype(output_dir: Path, *, section: str = "encoder") -> DType | None:
    """The number type in the plan of an output directory, which all its workers compute in; None
    without a plan, or with one that says nothing valid (which `claim_directory` refuses). `section`
    is the plan's key for the settings of the model."""
    path = output_dir / PLAN_FILE
    plan = read_json(path) if path.is_file() else None
    settings = plan.get(section) if isinstance(plan, dict) else None
    dtype = settings.get("dtype") if isinstance(settings, dict) else None
    return next((known for known in get_args(DType) if known == dtype), None)


def claim_directory(
    output_dir: Path,
    *,
    facts: dict[str, Any],
    model: str,
    corpus: str,
    adapters: Sequence[str] = (),
    source: Tally | None = None,
    what: str = "an encoding",
) -> None:
    """Create the plan in a new output directory, or check that the plan there is the same. If two
    workers with different facts arrive at the same time, one of them gets the directory. `source`:
    what became of the rows that the corpus was made from, if its manifest says it. `what` is made
    there, for messages.

    Raises `BadInput` with the facts that differ: vectors of two models must never mix.
    """
    path = output_dir / PLAN_FILE
    if output_dir.exists() and not output_dir.is_dir():
        raise BadInput(f"output_dir={output_dir}: is a file; choose a directory")
    # Listed BEFORE looking for the plan: another worker may be writing it at this moment, and
    # what it writes after the plan would look foreign.
    foreign = output_dir.is_dir() and any(not _ours(e.name) for e in output_dir.iterdir())
    if not path.is_file():
        if foreign:
            raise BadInput(f"output_dir={output_dir} is neither empty nor {what}; choose another")
        paths = {"model_path": model, "adapter_paths": list(adapters), "corpus_path": corpus}
        counts = {"source": source} if source else {}
        create_json(path, {**facts, **paths, **counts})
    # Read even after creating it: another worker may have been quicker.
    _require_same(output_dir, there=read_json(path), facts=facts, what=what)


def _require_same(output_dir: Path, *, there: Any, facts: dict[str, Any], what: str) -> None:
    damaged = f"{output_dir / PLAN_FILE}: is damaged; choose another output_dir"
    if not isinstance(there, dict):
        raise BadInput(damaged)
    differing = [
        key
        for key in {**facts, **there}
        if key not in NO_FACTS and there.get(key) != facts.get(key)
    ]
    if len(differing) > 1 and "bounds" in differing:  # bounds follow from the other facts
        differing.remove("bounds")
    if differing:
        raise BadInput(
            f"output_dir={output_dir} holds {what} of another "
            f"{' and '.join(differing)}; choose another output_dir"
        )
    # The facts are equal; the digest that the plan records must be theirs.
    if there.get("digest") != facts["digest"] or there["digest"] != facts_digest(there):
        raise BadInput(damaged)


def _ours(name: str) -> bool:
    """Whether a new output directory may hold this name: a file of the launch, or a plan that
    another worker is writing."""
    return name in (LOG_DIR, LAUNCHED_FILE, PREFETCHED_FILE) or name.startswith(f".{PLAN_FILE}.")

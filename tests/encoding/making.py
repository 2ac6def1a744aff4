"""Small encodings without a model, for tests of what is on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.encoding.output import Output
from toolkit.encoding.units import FORMAT, claim_directory, facts_digest, units
from toolkit.settings.schema import VectorFormat


def even_bounds(rows: int, *, unit_rows: int) -> list[int]:
    """Units of equal rows."""
    return [*range(0, rows, unit_rows), rows]


def output_of(
    directory: Path,
    *,
    rows: int,
    unit_rows: int,
    form: VectorFormat = "fp32",
    chunks: dict[str, int] | None = None,
    model: str = "m",
    corpus: str = "c",
) -> Output:
    """An encoding that has a plan, and nothing else."""
    bounds = even_bounds(rows, unit_rows=unit_rows)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "corpus": corpus,
        "model": model,
        "rows": rows,
        "bounds": bounds,
        "output": {"vectors": form, "dims": None, "normalize": False},
        **({"chunks": chunks} if chunks else {}),
    }
    facts["digest"] = facts_digest(facts)
    claim_directory(directory, facts=facts, model=model, corpus=corpus)
    return Output(
        directory, facts["digest"], units(bounds), form=form, has_chunks=chunks is not None
    )


def write_all(output: Output, vectors_ND: NDArray[np.float32]) -> None:
    """Every unit, with ids id0, id1, ... and titles T0, T1, ..., and the manifest."""
    for unit in output.units:
        records = [{"id": f"id{n}", "title": f"T{n}"} for n in range(unit.start, unit.stop)]
        output.write(unit, vectors_ND[unit.start : unit.stop], records)
    assert output.write_manifest() == []


def write_chunks(output: Output, vectors_ND: NDArray[np.float32], *, counts: Sequence[int]) -> None:
    """The same of texts that have so many chunks each."""
    starts = np.cumsum([0, *counts])
    for unit in output.units:
        records = [
            {
                "id": f"id{n}",
                "title": f"T{n}",
                "row": n,
                "chunk": k,
                "begin": 5 * k,
                "end": 5 * k + 7,
            }
            for n in range(unit.start, unit.stop)
            for k in range(counts[n])
        ]
        output.write(unit, vectors_ND[starts[unit.start] : starts[unit.stop]], records)
    assert output.write_manifest() == []

"""An encoding of texts by any function, as a teacher of training."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.encoding.making import output_of
from toolkit.base.files import digest_of
from toolkit.text.pairs import text_hash, text_id

UNIT_ROWS = 4096


def write_teacher(
    texts: Sequence[str],
    *,
    out: Path,
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    model: str,
    unit_rows: int = UNIT_ROWS,
) -> None:
    """Write what toolkit.encode would write of these texts, if `embed` were its model."""
    corpus = digest_of({"texts": list(texts)})
    output = output_of(out, rows=len(texts), unit_rows=unit_rows, model=model, corpus=corpus)
    for unit in output.units:
        some = texts[unit.start : unit.stop]
        records = [{"id": text_id(text), "title": None} for text in some]
        output.write(unit, embed(some), records)
    assert not output.write_manifest()


def random_vectors(texts: Sequence[str], *, width: int = 6) -> NDArray[np.float32]:
    """A vector per text that depends on the text alone."""
    seeds = [text_hash(text) % 2**63 for text in texts]
    rows = [np.random.default_rng(seed).standard_normal(width) for seed in seeds]
    return np.array(rows, dtype=np.float32).reshape(-1, width)

"""Semantic textual similarity: do cosines rank sentence pairs as people do? Shapes: P pairs."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from toolkit.files import BadInput

MAX_SHOWN = 80


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Sentence pairs with their human grades."""

    first: list[str]
    second: list[str]
    grades_P: NDArray[np.float64]


def read_pairs(path: Path) -> Pairs:
    """Read graded pairs: .tsv as score, sentence, sentence; .csv as sentence, sentence, score.

    Raises `BadInput` with the line that cannot be read, and when the grades say nothing.
    """
    if path.suffix not in (".tsv", ".csv"):
        raise BadInput(f"{path}: graded pairs are a .tsv (score first) or a .csv (score last)")
    rows: list[tuple[float, str, str]] = []
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            tabs = path.suffix == ".tsv"
            reader = csv.reader(
                handle,
                delimiter="\t" if tabs else ",",
                quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
            )
            for row in reader:
                rows.append(_pair(row, tabs=tabs, where=f"{path}, line {reader.line_num}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from error
    grades_P = np.array([row[0] for row in rows])
    if len(set(grades_P.tolist())) < 2:
        raise BadInput(f"{path}: {len(rows)} pairs of one grade have no order to compare with")
    return Pairs([row[1] for row in rows], [row[2] for row in rows], grades_P)


def cosines(
    first_PD: NDArray[np.float32], *, second_PD: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The cosine (P,) of each pair; 0 where a vector is zero."""
    first, second = first_PD.astype(np.float64), second_PD.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray((first * second).sum(axis=1) / np.maximum(norms, 1e-12))


def spearman(cosine_P: NDArray[np.float64], *, grades_P: NDArray[np.float64]) -> float:
    """Spearman's rank correlation of cosines and grades, the standard score of STS."""
    return float(spearmanr(cosine_P, grades_P).statistic)


def _pair(row: list[str], *, tabs: bool, where: str) -> tuple[float, str, str]:
    if len(row) != 3:
        raise BadInput(f"{where}: {len(row)} fields instead of 3")
    score, first, second = row if tabs else (row[2], row[0], row[1])
    try:
        grade = float(score)
    except ValueError:
        raise BadInput(f"{where}: {score[:MAX_SHOWN]!r} is no score") from None
    if not np.isfinite(grade):
        raise BadInput(f"{where}: {score!r} is no finite score")
    return grade, first, second

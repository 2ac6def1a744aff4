"""Semantic textual similarity: do cosines rank sentence pairs as people do?

Shapes: P pairs, N texts, D width.
"""

import csv
import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from toolkit.base.errors import BadInput
from toolkit.evaluation.task import Embed, Vectors, checked, unit
from toolkit.text.delimited import UTF_8, dialect_of

MAX_SHOWN = 80
MOST_VECTORS = 4096  # uniformity compares every two vectors of so many


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
        with path.open(encoding=UTF_8, newline="") as handle:
            tabs = path.suffix == ".tsv"
            reader = csv.reader(handle, dialect=dialect_of(path))
            for row in reader:
                rows.append(_pair(row, tabs=tabs, where=f"{path}, line {reader.line_num}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from error
    grades_P = np.array([row[0] for row in rows])
    if len(set(grades_P.tolist())) < 2:
        raise BadInput(f"{path}: {len(rows)} pairs of one grade have no order to compare with")
    return Pairs([row[1] for row in rows], [row[2] for row in rows], grades_P)


@dataclasses.dataclass(frozen=True)
class StsTask:
    """Spearman's rank correlation of cosines and grades, the standard score of STS; and how the
    vectors are spread (`geometry`)."""

    pairs: Pairs
    main: str = "Spearman"

    def scores(self, embed: Embed) -> dict[str, float]:
        """Spearman's correlation, and the figures of `geometry`."""
        pairs = self.pairs
        first_PD = checked(embed(pairs.first), texts=pairs.first)
        second_PD = checked(embed(pairs.second), texts=pairs.second)
        cosine_P = cosines(first_PD, second_PD=second_PD)
        scores = {self.main: spearman(cosine_P, grades_P=pairs.grades_P)}
        return scores | geometry(first_PD, second_PD=second_PD, grades_P=pairs.grades_P)


def cosines(first_PD: Vectors, *, second_PD: Vectors) -> NDArray[np.float64]:
    """The cosine (P,) of each pair; 0 where a vector is zero."""
    return np.asarray((unit(first_PD) * unit(second_PD)).sum(axis=1))


def spearman(cosine_P: NDArray[np.float64], *, grades_P: NDArray[np.float64]) -> float:
    """Spearman's rank correlation of cosines and grades.

    Raises `BadInput` when all cosines are equal: an encoder that tells no texts apart has none.
    """
    if np.ptp(cosine_P) == 0:
        raise BadInput(f"all {len(cosine_P)} cosines are {cosine_P[0]:.4f}: nothing to rank")
    return float(spearmanr(cosine_P, grades_P).statistic)


def geometry(
    first_PD: Vectors, *, second_PD: Vectors, grades_P: NDArray[np.float64]
) -> dict[str, float]:
    """How vectors of unit length are spread over their sphere.

    alignment: the mean squared distance of pairs in the upper fifth of the grades' range.
    uniformity: log of the mean of exp(-2 squared distance) over every two different vectors (Wang
    and Isola 2020; for both, lower is better). isotropy: min / max of the partition function over
    the principal directions, 1 when all directions are alike (Mu and Viswanath 2018).
    """
    first, second = unit(first_PD), unit(second_PD)
    near = grades_P >= grades_P.min() + 0.8 * np.ptp(grades_P)
    # Each vector once: a text in several pairs would look like a cluster.
    vectors_ND = np.unique(np.concatenate([first, second]), axis=0)
    some = vectors_ND[np.linspace(0, len(vectors_ND) - 1, MOST_VECTORS).astype(int)]
    some = vectors_ND if len(vectors_ND) <= MOST_VECTORS else some
    energy = float(np.exp(-2 * pdist(some, "sqeuclidean")).mean()) if len(some) > 1 else 1.0
    _, directions = np.linalg.eigh(vectors_ND.T @ vectors_ND)
    partition_D = np.exp(vectors_ND @ directions).sum(axis=0)
    return {
        "alignment": float(((first - second)[near] ** 2).sum(axis=1).mean()),
        "uniformity": float(np.log(max(energy, np.finfo(float).tiny))),
        "isotropy": float(partition_D.min() / partition_D.max()),
    }


def _pair(row: list[str], *, tabs: bool, where: str) -> tuple[float, str, str]:
    if len(row) != 3:
        raise BadInput(f"{where}: {len(row)} fields instead of 3")
    score, first, second = row if tabs else (row[2], row[0], row[1])
    try:
        grade = float(score)
    except ValueError:
        raise BadInput(f"{where}: {score[:MAX_SHOWN]!r} is not a score") from None
    if not np.isfinite(grade):
        raise BadInput(f"{where}: {score!r} is not a finite score")
    return grade, first, second

"""Two encoders beside each other, query by query: the mean difference with its interval, and where
the second is better or worse.

Knows what parts keep of their queries. Refuses to know how it is shown. No torch.

Shapes: Q queries, B draws of the bootstrap.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from toolkit.base.documents import checked
from toolkit.base.files import read_json
from toolkit.base.layout import PART_DIR
from toolkit.evaluation.task import Found

NUM_DRAWS = 2000
AT_ONCE = 200  # draws, so that a million queries need no more than 2 GB
SEED = 1


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean difference of paired scores, second less first, and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Change:
    """What two encoders found for a query."""

    before: Found
    after: Found

    @property
    def difference(self) -> float:
        """The main score of the second less that of the first."""
        return self.after["score"] - self.before["score"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The changes of a task, the worst first, and the difference of the means."""

    task: str
    changes: tuple[Change, ...]
    difference: Difference


def compare(output_dir: Path, *, before: str, after: str) -> list[Comparison]:
    """The comparison of two encoders, by their names in the recipe, on each task whose queries both
    parts have kept."""
    found = []
    for path in sorted((output_dir / PART_DIR / before).glob("*.json")):
        other = output_dir / PART_DIR / after / path.name
        one, two = _queries(path), _queries(other)
        if names := [name for name in one if name in two]:
            changes = [Change(one[name], two[name]) for name in names]
            difference = paired_difference(
                np.array([change.before["score"] for change in changes]),
                np.array([change.after["score"] for change in changes]),
            )
            changes.sort(key=lambda change: change.difference)
            found.append(Comparison(path.stem, tuple(changes), difference))
    return found


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How two sets of queries about one corpus order the same rankers (encoders, BM25, fusions):
    Kendall's tau-b of their main scores, and the pairs of rankers, better one first by the first
    set, that the second puts the other way."""

    tasks: tuple[str, str]
    rankers: tuple[str, ...]
    tau: float
    reversed: tuple[tuple[str, str], ...]

    @property
    def num_pairs(self) -> int:
        """The number of pairs of rankers."""
        return math.comb(len(self.rankers), 2)


def agreements(output_dir: Path, *, rankers: Sequence[str]) -> list[Agreement]:
    """The agreement of each two tasks on one corpus that at least three of these rankers were
    scored on; the names are those of folders of parts. Kendall 1945, "The treatment of ties in
    ranking problems"."""
    of_task: dict[tuple[str, str], dict[str, float]] = {}
    for ranker in rankers:
        for path in sorted((output_dir / PART_DIR / ranker).glob("*.json")):
            if found := _main_score(path):
                of_task.setdefault((found[0], path.stem), {})[ranker] = found[1]
    every = []
    for (one, first), (other, second) in itertools.combinations(of_task, 2):
        a, b = of_task[one, first], of_task[other, second]
        names = [name for name in rankers if name in a and name in b]
        if one != other or len(names) < 3:
            continue
        tau = kendalltau([a[name] for name in names], [b[name] for name in names]).statistic
        pairs = [
            (better, worse)
            for better, worse in itertools.permutations(names, 2)
            if a[better] > a[worse] and b[better] < b[worse]
        ]
        every.append(Agreement((first, second), tuple(names), float(tau), tuple(pairs)))
    return every


def _main_score(path: Path) -> tuple[str, float] | None:
    """The corpus that a part was searched in and its main score; None where it has none."""
    part: Any = read_json(path)
    try:
        return str(part["corpus"]), float(part["scores"][part["facts"]["main"]])
    except (KeyError, TypeError, ValueError):
        return None


def paired_difference(before_Q: NDArray[np.float64], after_Q: NDArray[np.float64]) -> Difference:
    """The mean of the differences, and the 95 % interval of a paired bootstrap over queries (Efron
    and Tibshirani 1993): the percentiles of the means of `NUM_DRAWS` draws with replacement."""
    difference_Q = after_Q - before_Q
    rng = np.random.default_rng(SEED)
    mean_B = np.concatenate(
        [
            difference_Q[rng.integers(len(difference_Q), size=(AT_ONCE, len(difference_Q)))].mean(1)
            for _ in range(NUM_DRAWS // AT_ONCE)
        ]
    )
    low, high = np.percentile(mean_B, [2.5, 97.5])
    return Difference(float(difference_Q.mean()), float(low), float(high))


def _queries(path: Path) -> Mapping[str, Found]:
    """What a part keeps of its queries; nothing where it is of an older version, or absent."""
    if not path.is_file():
        return {}
    content: Any = read_json(path)
    queries = content.get("queries", {}) if isinstance(content, dict) else {}
    return checked(queries, dict[str, Found], source=path, advice="evaluate it again")

"""Two encoders beside each other, query by query: the mean difference with its interval, and where
the second is better or worse.

Knows what parts keep of their queries. Refuses to know how it is shown. No torch.

Shapes: Q queries, B draws of the bootstrap.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

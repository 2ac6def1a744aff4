"""Tasks with classes: classification, clustering, pairs that match or do not.

Shapes: N texts, D width, P pairs.
"""

import collections
import dataclasses
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.base.console import warn
from toolkit.base.errors import BadInput
from toolkit.evaluation.labelled import LABEL, read_columns, read_labelled
from toolkit.evaluation.sts import cosines
from toolkit.evaluation.task import Embed, Vectors, checked

SEED = 42
ITERATIONS = 100
CLUSTERINGS, MOST_CLUSTERED, BATCH_ROWS = 10, 16_384, 512


@dataclasses.dataclass(frozen=True)
class ClassificationTask:
    """Accuracy and macro F1 of logistic regression on frozen vectors, as MTEB does it: the mean of
    `experiments`, each on `samples_per_label` newly drawn texts per label (None: all texts)."""

    train: tuple[list[str], list[str]]
    test: tuple[list[str], list[str]]
    samples_per_label: int | None
    experiments: int
    main: str = "accuracy"

    def scores(self, embed: Embed) -> dict[str, float]:
        """The mean accuracy and macro F1 of all experiments, from 0 to 1."""
        from sklearn.metrics import accuracy_score, f1_score

        results = []
        for predicted in self.predictions(embed):
            f1 = f1_score(self.test[1], predicted, average="macro", zero_division=0)
            results.append((accuracy_score(self.test[1], predicted), f1))
        accuracy, f1 = np.mean(results, axis=0)
        return {self.main: float(accuracy), "macro F1": float(f1)}

    def predictions(self, embed: Embed) -> Iterator[NDArray[np.str_]]:
        """The labels (N,) that each experiment gives the test texts."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        draws = self._draws()
        used = sorted({row for rows in draws for row in rows})
        texts = [self.train[0][row] for row in used]
        vectors = dict(zip(used, checked(embed(texts), texts=texts), strict=True))
        test_ND = checked(embed(self.test[0]), texts=self.test[0])
        for rows in draws:
            model = LogisticRegression(max_iter=ITERATIONS, random_state=SEED)
            with warnings.catch_warnings():
                # MTEB's limit of 100 steps is seldom enough to converge.
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(
                    np.stack([vectors[row] for row in rows]), [self.train[1][row] for row in rows]
                )
            yield model.predict(test_ND)

    def _draws(self) -> list[list[int]]:
        """The rows of each experiment. Like MTEB, shuffle the last order with the same seed."""
        rows, draws = list(range(len(self.train[1]))), []
        for _ in range(self.experiments):
            if self.samples_per_label is not None:
                np.random.RandomState(SEED).shuffle(rows)
            taken: collections.Counter[str] = collections.Counter()
            some = []
            for row in rows:
                label = self.train[1][row]
                if self.samples_per_label is None or taken[label] < self.samples_per_label:
                    some.append(row)
                    taken[label] += 1
            draws.append(some)
        return draws


def read_classification(
    name: str, *, train: Path, test: Path, samples_per_label: int | None, experiments: int
) -> ClassificationTask:
    """Read both files of a task. Raises `BadInput` for a single class. Test texts whose label does
    not occur in training are counted in a warning, and count as wrong."""
    known, asked = read_labelled(train), read_labelled(test)
    if len(set(known[1])) < 2:
        raise BadInput(f"{train}: all {len(known[1])} texts have the label {known[1][0]!r}")
    trained_on = set(known[1])
    strange = [label for label in asked[1] if label not in trained_on]
    if strange:
        warn(
            f"{name}: {len(strange)} of {len(asked[1])} texts of {test} have a label that "
            f"{train} does not have, such as {strange[0]!r}; each counts as wrong"
        )
    return ClassificationTask(known, asked, samples_per_label, experiments)


@dataclasses.dataclass(frozen=True)
class ClusteringTask:
    """V-measure of k-means with as many clusters as labels, as MTEB does it: the mean of ten runs,
    each on texts drawn with replacement."""

    texts: list[str]
    labels: list[str]
    main: str = "V-measure"

    def scores(self, embed: Embed) -> dict[str, float]:
        """The mean V-measure of all runs, from 0 to 1."""
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.metrics import v_measure_score

        vectors_ND, labels_N = checked(embed(self.texts), texts=self.texts), np.array(self.labels)
        draw, measures = random.Random(SEED), []  # noqa: S311 (no secret)
        model = MiniBatchKMeans(
            n_clusters=len(set(self.labels)),
            batch_size=BATCH_ROWS,
            init="k-means++",
            n_init=1,
            random_state=SEED,
        )
        rows = range(len(self.texts))
        for _ in range(CLUSTERINGS):
            some = draw.choices(rows, k=min(MOST_CLUSTERED, len(rows)))
            measures.append(v_measure_score(labels_N[some], model.fit_predict(vectors_ND[some])))
        return {self.main: float(np.mean(measures))}


def read_clustering(path: Path) -> ClusteringTask:
    """Read labelled texts. Raises `BadInput` for a single label, or as many labels as texts."""
    texts, labels = read_labelled(path)
    if len(set(labels)) < 2 or len(set(labels)) == len(labels):
        raise BadInput(f"{path}: {len(set(labels))} labels of {len(labels)} texts make no clusters")
    return ClusteringTask(texts, labels)


@dataclasses.dataclass(frozen=True)
class PairTask:
    """Average precision of the cosines of pairs, and the accuracy at the best threshold."""

    first: list[str]
    second: list[str]
    matches_P: NDArray[np.int64]
    main: str = "AP"

    def scores(self, embed: Embed) -> dict[str, float]:
        """Average precision, and accuracy at the best threshold, from 0 to 1."""
        from sklearn.metrics import average_precision_score

        first: Vectors = checked(embed(self.first), texts=self.first)
        second: Vectors = checked(embed(self.second), texts=self.second)
        cosine_P = cosines(first, second_PD=second)
        average = average_precision_score(self.matches_P, cosine_P)
        return {self.main: float(average), "accuracy": _best_accuracy(cosine_P, self.matches_P)}


def read_pair_task(path: Path) -> PairTask:
    """Read pairs from the columns sentence1, sentence2 and label (1 for a match, else 0)."""
    names = (("sentence1", "text1"), ("sentence2", "text2"), LABEL)
    first, second, labels = read_columns(path, columns=names)
    if strange := [label for label in labels if label not in ("0", "1")]:
        raise BadInput(f"{path}: the label {strange[0]!r} is neither 0 nor 1")
    if len(set(labels)) < 2:
        raise BadInput(f"{path}: all {len(labels)} pairs have the label {labels[0]}")
    return PairTask(first, second, np.array([int(label) for label in labels]))


def _best_accuracy(cosine_P: NDArray[np.float64], matches_P: NDArray[np.int64]) -> float:
    """The best accuracy of all thresholds, if pairs above it match. As in MTEB, a threshold parts
    two cosines that differ, so that it calls some pairs a match and some not; without one it is 0.
    """
    # With no pair above the threshold, all pairs that do not match are right. Lowering it past a
    # pair makes one more right if the pair matches, and one fewer if not.
    order = np.argsort(-cosine_P, kind="stable")
    right = np.cumsum(np.where(matches_P[order] == 1, 1, -1)) + (matches_P == 0).sum()
    ends = np.flatnonzero(np.diff(cosine_P[order]))
    return float(right[ends].max() / len(order)) if len(ends) else 0.0

"""The protocol of a task: texts and right answers, read once, scored for any encoder."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from toolkit.base.errors import BadInput

if TYPE_CHECKING:  # imports torch
    from toolkit.evaluation.word_features import TokenEncoder

Vectors = NDArray[np.float32]
Scores = NDArray[np.floating[Any]]
# Scores of which a smaller one is better.
LOWER_IS_BETTER = ("alignment", "uniformity")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The scores of a task by name and, for a task of queries, what was found for each of them, and
    the digest of the texts that were searched."""

    scores: Mapping[str, float]
    queries: Mapping[str, "Found"] = dataclasses.field(default_factory=dict)
    corpus: str = ""


class Found(TypedDict):
    """What was found for a query: its text, the main score, the names of the documents that come
    first, and of some that are relevant."""

    query: str
    score: float
    first: list[str]
    relevant: list[str]


class Embed(Protocol):
    """An encoder with the instruction of a task. `revision` is its digest."""

    name: str

    @property
    def revision(self) -> str:
        """The digest that tells the encoder from others."""

    def __call__(self, texts: Sequence[str], *, instructed: bool = True) -> Vectors:
        """Embed texts as vectors (N, D), fp32, in their order; `instructed` puts the task's
        instruction before each text; documents, of which other tasks may have the same, have
        none."""


@runtime_checkable
class EmbedTokens(Embed, Protocol):
    """An `Embed` whose encoder also gives the states of tokens, which tasks on words need."""

    @property
    def encoder(self) -> "TokenEncoder":
        """The encoder itself; words carry no instruction."""


class Task(Protocol):
    """Something that scores an encoder."""

    @property
    def main(self) -> str:
        """The name of the score by which tasks are averaged."""

    def scores(self, embed: Embed) -> Mapping[str, float]:
        """Score an encoder: the value of each score by its name."""


@runtime_checkable
class RankingTask(Task, Protocol):
    """A task that ranks texts for queries, so that words can rank them, too."""

    def cosines(self, embed: Embed) -> Iterator[Scores]:
        """For each query the scores (N,) of its texts, by an encoder."""

    def word_scores(self) -> Iterator[Scores]:
        """The same by BM25, where a score of 0 means that a text is not found."""

    def outcome(self, found: Iterable[Scores]) -> Outcome:
        """The outcome of the task, given the scores of the texts for each query."""


def checked(vectors_ND: Vectors, *, texts: Sequence[str]) -> Vectors:
    """The vectors, if all are finite; else `BadInput` names the first text whose vector is not."""
    finite_N = np.asarray(np.isfinite(vectors_ND).all(axis=1))
    if not finite_N.all():
        row = int(np.flatnonzero(~finite_N)[0])
        raise BadInput(
            f"{int((~finite_N).sum())} of {len(finite_N)} vectors are not finite, the first that "
            f"of {texts[row][:80]!r}: use another dtype (fp32, bf16), or another copy of the model"
        )
    return vectors_ND


def unit(vectors_ND: Vectors) -> NDArray[np.float64]:
    """Vectors divided by their lengths, in double precision; zero vectors stay zero."""
    wide_ND = vectors_ND.astype(np.float64)
    lengths_N1: NDArray[np.float64] = np.linalg.norm(wide_ND, axis=1, keepdims=True)
    return wide_ND / np.maximum(lengths_N1, 1e-12)

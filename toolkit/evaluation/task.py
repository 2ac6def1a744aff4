"""The protocol of a task: texts and right answers, read once, scored for any encoder."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import BadInput

if TYPE_CHECKING:  # imports torch
    from toolkit.evaluation.word_features import TokenEncoder

Vectors = NDArray[np.float32]
# Scores of which a smaller one is better.
LOWER_IS_BETTER = ("alignment", "uniformity")


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

"""What an objective is to the loop.

An objective turns samples into a batch and a batch into a SUM of losses over its units (masked
tokens, rows); the loop owns the normaliser, because only it sees the whole global batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from toolkit.batching.batch import Rows
from toolkit.text.stream import Sample
from toolkit.text.tokens import TextTokenizer

# What to report, each figure summed over units: the loop divides by those of all ranks.
Figures = Mapping[str, Tensor]


class Encoded(Protocol):
    """A sample as tokens, in whatever form its objective collates."""

    @property
    def num_tokens(self) -> int:
        """How many tokens it puts into a batch."""


class Batch(Protocol):
    """A micro-batch: a frozen data class of rows, and of what the objective needs beside them."""

    @property
    def rows(self) -> Rows:
        """The tokens."""


AnyEncoded = TypeVar("AnyEncoded", bound=Encoded)
AnyBatch = TypeVar("AnyBatch", bound=Batch)


class Objective(Protocol[AnyEncoded, AnyBatch]):
    """The part of a training run that differs between MNTP, SimCSE and supervised training."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """That of the model."""

    @property
    def needs_head(self) -> bool:
        """Whether the language-model head takes part."""

    @property
    def packed(self) -> bool:
        """Whether rows lie one after another, without padding."""

    def encode(self, samples: Sequence[Sample[Any]]) -> Sequence[AnyEncoded]:
        """Each sample as tokens."""

    def collate(self, encoded: Sequence[AnyEncoded]) -> AnyBatch:
        """The batch of some samples that `encode` gave, as CPU tensors."""

    def num_units(self, batch: AnyBatch) -> int:
        """How many terms the loss of this batch sums."""

    def terms(
        self, forward: Callable[..., Any], batches: Sequence[AnyBatch]
    ) -> Iterator[tuple[Tensor, Figures]]:
        """For each micro-batch in order a scalar, whose gradients add up to that of the SUM of
        losses over this rank's units, and the figures to report with it, "loss" among them.

        The caller goes backward from a scalar before it asks for the next.
        """

"""What an objective is to the loop.

An objective turns samples into a batch, and a batch into a SUM of losses over its units (masked
tokens, rows). The loop divides by the number of units, since only it sees the whole global batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from toolkit.batching.batch import Rows
from toolkit.model.vector_rules import VectorRules
from toolkit.text.stream import Sample
from toolkit.text.tokens import TextTokenizer

# Figures to report, each summed over units: the loop divides by the units of all ranks.
Figures = Mapping[str, Tensor]


class Encoded(Protocol):
    """A sample as tokens, in whatever form its objective collates."""

    @property
    def num_tokens(self) -> int:
        """How many tokens it puts into a batch."""


class Batch(Protocol):
    """A micro-batch: a frozen data class of rows and what else the objective needs."""

    @property
    def rows(self) -> Rows:
        """The token rows that go through the model."""


AnyEncoded = TypeVar("AnyEncoded", bound=Encoded)
AnyBatch = TypeVar("AnyBatch", bound=Batch)


class Objective(Protocol[AnyEncoded, AnyBatch]):
    """The part of a training run that differs between MNTP, SimCSE and supervised training."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the model that is trained."""

    @property
    def needs_head(self) -> bool:
        """Whether the language-model head takes part."""

    @property
    def packed(self) -> bool:
        """Whether texts follow one another in one row, without padding."""

    @property
    def rules(self) -> VectorRules:
        """How texts become vectors; of MNTP, for its probe."""

    def encode(self, samples: Sequence[Sample[Any]]) -> Sequence[AnyEncoded]:
        """Tokenise samples of one global batch, one result per sample."""

    def collate(self, encoded: Sequence[AnyEncoded]) -> AnyBatch:
        """The batch of some encoded samples, as CPU tensors."""

    def num_units(self, batch: AnyBatch) -> int:
        """How many terms the loss of this batch sums."""

    def terms(
        self, forward: Callable[..., Any], batches: Sequence[AnyBatch]
    ) -> Iterator[tuple[Tensor, Figures]]:
        """For each micro-batch in order a scalar and the figures to report with it, of which "loss"
        is always one. The gradients of the scalars add up to that of the SUM of losses over this
        rank's units.

        The caller must call backward on each scalar before it asks for the next.
        """

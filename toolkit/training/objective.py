"""What an objective is to the loop.

An objective turns samples into a batch and a batch into a SUM of losses over its units (masked
tokens, rows); the loop owns the normaliser, because only it sees the whole global batch.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from toolkit.text.stream import Sample
from toolkit.text.tokens import TextTokenizer

Batch = Mapping[str, Tensor]


class Objective(Protocol):
    """The part of a training run that differs between MNTP, SimCSE and supervised training."""

    @property
    def unit(self) -> str:
        """What a sample is: "documents" (passages of them) or "sentences"."""

    @property
    def needs_head(self) -> bool:
        """Whether the language-model head takes part."""

    def collate(self, samples: Sequence[Sample], *, tokenizer: TextTokenizer) -> Batch:
        """The batch of some samples, as CPU tensors."""

    def num_units(self, batch: Batch) -> int:
        """How many terms the loss of this batch sums."""

    def loss_sum(self, forward: nn.Module, batch: Batch) -> Tensor:
        """The sum of losses over this rank's units, a scalar with gradient."""

"""Masked next token prediction (LLM2Vec, arXiv 2404.05961, section 2.2).

Shapes: B rows, T tokens, M hidden tokens of the batch, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.batching.batch import Rows, lay_out, model_arguments, place
from toolkit.model.losses import Kernel, masked_token_nll
from toolkit.model.vector_rules import PLAIN_RULES, VectorRules
from toolkit.settings.schema import Mntp
from toolkit.text.masking import mask_tokens
from toolkit.text.order import sample_seed
from toolkit.text.stream import Pieces, Sample
from toolkit.text.tokens import TextTokenizer
from toolkit.training.objective import Figures


@dataclasses.dataclass(frozen=True)
class MaskedBlock:
    """The pieces of a block: their tokens with some hidden, the positions that predict the hidden
    ones, and the hidden tokens themselves."""

    rows: list[NDArray[np.int64]]
    predict: list[NDArray[np.bool_]]
    targets: list[NDArray[np.int64]]

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all pieces."""
        return sum(map(len, self.rows))


@dataclasses.dataclass(frozen=True)
class MntpBatch:
    """Corrupted pieces of blocks: at which positions a token is predicted and, piece by piece, the
    right token there."""

    rows: Rows
    predict_BT: Tensor
    target_M: Tensor


@dataclasses.dataclass(frozen=True)
class MntpObjective:
    """Hide tokens; predict hidden token i from the hidden state at i - 1."""

    settings: Mntp
    tokenizer: TextTokenizer
    seed: int
    mask_id: int
    packed: bool
    kernel: Kernel = "torch"
    needs_head: bool = True
    rules: VectorRules = PLAIN_RULES

    def encode(self, samples: Sequence[Sample[Pieces]]) -> list[MaskedBlock]:
        """Hide some tokens of each block, by random numbers that depend on the sample alone."""
        blocks = []
        for sample in samples:
            # Seeded per sample: neither ranks, micro-batches nor a restart change what is hidden.
            entropy = sample_seed(seed=self.seed, epoch=sample.epoch, sample=sample.index)
            rng = np.random.default_rng(entropy)
            block = MaskedBlock([], [], [])
            for ids_T in sample.content:
                corrupted_T, hidden_T = mask_tokens(
                    ids_T,
                    own_T=self.tokenizer.is_own(ids_T),
                    probability=self.settings.mask_probability,
                    policy=self.settings.mask_policy,
                    mask_id=self.mask_id,
                    vocab_size=self.tokenizer.vocab_size,
                    rng=rng,
                )
                block.rows.append(corrupted_T)
                # Position i - 1 predicts token i, as in the decoder's own training.
                block.predict.append(np.append(hidden_T[1:], False))
                block.targets.append(ids_T[hidden_T])
            blocks.append(block)
        return blocks

    def collate(self, encoded: Sequence[MaskedBlock]) -> MntpBatch:
        """The batch of the pieces of some blocks, in order."""
        rows = lay_out(
            [row for block in encoded for row in block.rows],
            tokenizer=self.tokenizer,
            packed=self.packed,
        )
        predict = [row for block in encoded for row in block.predict]
        targets = [row for block in encoded for row in block.targets]
        return MntpBatch(
            rows,
            predict_BT=place(predict, rows=rows, fill=False),
            target_M=torch.from_numpy(np.concatenate(targets)),
        )

    def num_units(self, batch: MntpBatch) -> int:
        """The number of hidden tokens of a batch."""
        return len(batch.target_M)

    def terms(
        self, forward: Callable[..., Any], batches: Sequence[MntpBatch]
    ) -> Iterator[tuple[Tensor, Figures]]:
        """Summed NLL of each micro-batch. Logits are computed at predicting positions only."""
        for batch in batches:
            output = forward(**model_arguments(batch.rows), logits_to_keep=batch.predict_BT)
            loss, correct = masked_token_nll(
                output.logits, target_M=batch.target_M, kernel=self.kernel
            )
            yield loss, {"loss": loss.detach(), "accuracy": correct}

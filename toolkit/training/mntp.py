"""Masked next token prediction (LLM2Vec, arXiv 2404.05961, section 2.2).

Shapes: B rows, T tokens, M hidden tokens of the batch, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.model.losses import masked_token_nll
from toolkit.schema import Mntp
from toolkit.text.masking import mask_tokens
from toolkit.text.order import sample_seed
from toolkit.text.stream import Sample
from toolkit.text.tokens import TextTokenizer
from toolkit.training.objective import Batch


@dataclasses.dataclass(frozen=True)
class MntpObjective:
    """Hide tokens; predict hidden token i from the hidden state at i - 1."""

    settings: Mntp
    seed: int
    mask_id: int
    unit: str = "documents"
    needs_head: bool = True

    def collate(self, samples: Sequence[Sample], *, tokenizer: TextTokenizer) -> Batch:
        """ids_BT, mask_BT, predict_BT (where a prediction is made) and target_M, row by row."""
        rows, hidden, targets = [], [], []
        for sample, ids_T in zip(samples, tokenizer.encode([s.text for s in samples]), strict=True):
            entropy = sample_seed(seed=self.seed, epoch=sample.epoch, sample=sample.index)
            corrupted_T, hidden_T = mask_tokens(
                ids_T,
                own_T=tokenizer.is_own(ids_T),
                probability=self.settings.mask_probability,
                policy=self.settings.mask_policy,
                mask_id=self.mask_id,
                vocab_size=tokenizer.vocab_size,
                rng=np.random.default_rng(entropy),
            )
            rows.append(corrupted_T)
            hidden.append(hidden_T)
            targets.append(ids_T[hidden_T])
        padded = tokenizer.pad(rows)
        predict_BT = np.zeros(padded.ids_BT.shape, dtype=bool)
        for number, hidden_T in enumerate(hidden):
            predict_BT[number, : max(0, len(hidden_T) - 1)] = hidden_T[1:]  # i is predicted at i-1
        return {
            "ids_BT": torch.from_numpy(padded.ids_BT),
            "mask_BT": torch.from_numpy(padded.mask_BT),
            "predict_BT": torch.from_numpy(predict_BT),
            "target_M": torch.from_numpy(np.concatenate(targets)),
        }

    def num_units(self, batch: Batch) -> int:
        """The number of hidden tokens."""
        return len(batch["target_M"])

    def loss_sum(self, forward: nn.Module, batch: Batch) -> Tensor:
        """Summed NLL; logits exist at the hidden positions only."""
        output = forward(
            input_ids=batch["ids_BT"],
            attention_mask=batch["mask_BT"],
            logits_to_keep=batch["predict_BT"],
        )
        return masked_token_nll(output.logits, target_M=batch["target_M"])

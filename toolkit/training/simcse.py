"""Unsupervised SimCSE with negatives from all ranks (Gao et al. 2021; LLM2Vec section 2.3).

Shapes: B local rows, T tokens, D width, N rows of all ranks.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from toolkit.model.losses import info_nce
from toolkit.model.pooling import mean_pool
from toolkit.parallel import comm
from toolkit.schema import Simcse
from toolkit.text.stream import Sample
from toolkit.text.tokens import TextTokenizer
from toolkit.training.objective import Batch


@dataclasses.dataclass(frozen=True)
class SimcseObjective:
    """Two dropout views of a sentence are a positive pair; all other sentences are negatives."""

    settings: Simcse
    unit: str = "sentences"
    needs_head: bool = False

    def collate(self, samples: Sequence[Sample], *, tokenizer: TextTokenizer) -> Batch:
        """ids_BT, mask_BT and own_BT of the sentences."""
        padded = tokenizer.pad(tokenizer.encode([sample.text for sample in samples]))
        return {
            "ids_BT": torch.from_numpy(padded.ids_BT),
            "mask_BT": torch.from_numpy(padded.mask_BT),
            "own_BT": torch.from_numpy(padded.own_BT),
        }

    def num_units(self, batch: Batch) -> int:
        """The number of rows."""
        return len(batch["ids_BT"])

    def loss_sum(self, forward: nn.Module, batch: Batch) -> Tensor:
        """Summed InfoNCE of our rows against the second views of all ranks."""
        # Both views in one forward pass: dropout draws anew for every row, and one pass of twice
        # the rows keeps a device busier than two.
        output = forward(
            input_ids=batch["ids_BT"].repeat(2, 1), attention_mask=batch["mask_BT"].repeat(2, 1)
        )
        pooled = mean_pool(output.last_hidden_state, own_BT=batch["own_BT"].repeat(2, 1))
        first_BD, second_BD = pooled.chunk(2)
        candidate_ND = comm.gather_rows(second_BD)
        num_rows = len(first_BD)
        target_B = torch.arange(num_rows, device=first_BD.device) + comm.rank() * num_rows
        return info_nce(
            first_BD, candidate_ND=candidate_ND, target_B=target_B, scale=self.settings.scale
        )

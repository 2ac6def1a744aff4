"""Which documents are held out: never trained on, so that a loss on them says something.

Knows numbers of rows and a seed. Refuses to know files, and what is measured on the documents.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import BadInput
from toolkit.text.order import sample_at

SALT = 0x68656C64  # so that the draw says nothing about the order of the samples

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class HeldOut:
    """So many whole documents, drawn by a seed: the same ones for any block length, any number of
    ranks and any cut into shards. A smaller number is a part of a larger one."""

    documents: int = 0
    seed: int = 0

    def rows(self, num_rows: int) -> Ints:
        """Which of so many rows, ascending. Raises `BadInput` when none is left."""
        if self.documents and self.documents >= num_rows:
            raise BadInput(
                f"data.held_out_documents={self.documents}: the shards hold {num_rows} documents; "
                "leave some to train on"
            )
        places = np.arange(self.documents, dtype=np.int64)
        return np.sort(sample_at(places, num_samples=num_rows, seed=self.seed ^ SALT))


NOTHING = HeldOut()

"""Which documents are held out, that is, never trained on, so that a loss on them is meaningful.

Knows row numbers and a seed. Refuses to know files, and what is measured on the documents.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import BadInput
from toolkit.text.order import sample_at

SALT = 0x68656C64  # makes the draw independent of the order of the samples

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class HeldOut:
    """The draw of `documents` whole documents by a seed. It is the same for any block length,
    number of ranks and division into shards. A smaller draw is a subset of a larger one."""

    documents: int = 0
    seed: int = 0

    def rows(self, num_rows: int) -> Ints:
        """The rows that are held out of `num_rows`, ascending. Raises `BadInput` if no row would be
        left to train on."""
        if self.documents and self.documents >= num_rows:
            raise BadInput(
                f"data.held_out_documents={self.documents}: the shards hold {num_rows} documents; "
                "leave some to train on"
            )
        places = np.arange(self.documents, dtype=np.int64)
        return np.sort(sample_at(places, num_samples=num_rows, seed=self.seed ^ SALT))


NOTHING = HeldOut()

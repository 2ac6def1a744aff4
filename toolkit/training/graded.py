"""Training on pairs of texts with grades, such as STS-B's train part: cosines in their order.

Knows the file of pairs and the order of samples that it gives. Refuses to know how a loss weighs
two pairs (`model.cosent`).

Shapes: B local pairs, T tokens, D width, N pairs of all ranks.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from toolkit.base.files import sha256_of
from toolkit.batching.batch import Rows, embed_rows, lay_out
from toolkit.encoding.rows import RowMaker
from toolkit.evaluation.sts import read_pairs
from toolkit.model.cosent import cosent, share_in_order
from toolkit.model.head import pooling_head
from toolkit.model.vector_rules import PLAIN_RULES, VectorRules
from toolkit.parallel import comm
from toolkit.settings.schema import Graded
from toolkit.text.stream import Sample
from toolkit.text.tokens import TextTokenizer
from toolkit.training.contrastive import cached_terms, contrastive_figures
from toolkit.training.objective import Figures


@dataclasses.dataclass(frozen=True)
class GradedPair:
    """Two texts, and how similar people found them."""

    first: str
    second: str
    grade: float


class GradedPairs:
    """The pairs of a .tsv or .csv file in its order; all are in memory. Raises `BadInput` as
    `read_pairs` does."""

    def __init__(self, path: Path) -> None:
        self._path, self._pairs = path, read_pairs(path)
        self.num_samples = len(self._pairs.first)

    @property
    def digest(self) -> str:
        """The SHA-256 of the file."""
        return sha256_of(self._path)

    def content(self, index: int) -> GradedPair:
        """The pair at `index` in the order of the file."""
        pairs = self._pairs
        return GradedPair(pairs.first[index], pairs.second[index], float(pairs.grades_P[index]))

    def name(self, index: int) -> str:
        """The number of the pair in its file, from 0, for people."""
        return f"{self._path.name}, pair {index}"


@dataclasses.dataclass(frozen=True)
class GradedTokens:
    """The rows of token ids of both texts of a pair, and its grade."""

    first_T: NDArray[np.int64]
    second_T: NDArray[np.int64]
    grade: float

    @property
    def num_tokens(self) -> int:
        """The number of tokens of both texts."""
        return len(self.first_T) + len(self.second_T)


@dataclasses.dataclass(frozen=True)
class GradedBatch:
    """The rows of all first texts, and then of all second ones, and the grades of the pairs."""

    rows: Rows
    grade_B: Tensor


@dataclasses.dataclass(frozen=True)
class GradedObjective:
    """The cosines of the global batch's pairs in the order of their grades."""

    settings: Graded
    tokenizer: TextTokenizer
    packed: bool
    needs_head: bool = False
    rules: VectorRules = PLAIN_RULES

    def encode(self, samples: Sequence[Sample[GradedPair]]) -> list[GradedTokens]:
        """The tokens of each pair."""
        pairs = [sample.content for sample in samples]
        firsts = self.tokenizer.encode([pair.first for pair in pairs])
        seconds = self.tokenizer.encode([pair.second for pair in pairs])
        grades = [pair.grade for pair in pairs]
        return [GradedTokens(*each) for each in zip(firsts, seconds, grades, strict=True)]

    def collate(self, encoded: Sequence[GradedTokens]) -> GradedBatch:
        """The batch of some pairs."""
        texts = [pair.first_T for pair in encoded] + [pair.second_T for pair in encoded]
        owns = RowMaker(self.tokenizer, rules=self.rules).with_marks(texts).owns
        rows = lay_out(texts, tokenizer=self.tokenizer, packed=self.packed, owns=owns)
        grades = [pair.grade for pair in encoded]
        return GradedBatch(rows, grade_B=torch.tensor(grades, dtype=torch.float64))

    def num_units(self, batch: GradedBatch) -> int:
        """The number of pairs in a batch."""
        return len(batch.grade_B)

    def terms(
        self, forward: Callable[..., Any], batches: Sequence[GradedBatch]
    ) -> Iterator[tuple[Tensor, Figures]]:
        """The loss of the pairs of all ranks, times our pairs, however many micro-batches hold
        them."""
        head = pooling_head(self.rules)
        return cached_terms(
            batches,
            embed=lambda batch: embed_rows(forward, batch.rows, head=head),
            loss=functools.partial(self._loss_sum, batches),
        )

    def _loss_sum(
        self, batches: Sequence[GradedBatch], vectors: Sequence[Tensor]
    ) -> tuple[Tensor, Figures]:
        """The loss is one of the whole global batch. Every rank computes all of it and takes it as
        often as it has pairs, so that what the ranks add up to is a mean over pairs, as in the
        other objectives."""
        first_BD, second_BD = (
            torch.cat(texts) for texts in zip(*(v.chunk(2) for v in vectors), strict=True)
        )
        grade_B = torch.cat([batch.grade_B for batch in batches])
        cosine_B = F.cosine_similarity(first_BD.float(), second_BD.float())
        # A number per pair goes over the network, and not its vectors.
        cosine_N = comm.gather_rows(cosine_B[:, None]).flatten()
        grade_N = comm.gather_values(grade_B)
        loss = cosent(cosine_N, grade_N=grade_N, scale=self.settings.scale) * len(grade_B)
        figures = contrastive_figures(
            loss,
            correct=share_in_order(cosine_N, grade_N=grade_N) * len(grade_B),
            query_BD=first_BD,
            positive_BD=second_BD,
        )
        return loss, figures

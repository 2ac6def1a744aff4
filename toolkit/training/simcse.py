"""Unsupervised SimCSE with negatives from all ranks (Gao et al. 2021; LLM2Vec section 2.3).

Shapes: B local rows, T tokens, D width, E width of a teacher, N rows of all ranks.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.batching.batch import Rows, embed_rows, lay_out
from toolkit.encoding.formats import Vectors
from toolkit.encoding.rows import RowMaker
from toolkit.model.distillation import Excluded
from toolkit.model.head import pooling_head
from toolkit.model.losses import FILLER, FalseNegatives
from toolkit.model.vector_rules import PLAIN_RULES, VectorRules
from toolkit.parallel import comm
from toolkit.settings.schema import Simcse
from toolkit.text.pairs import text_hash
from toolkit.text.stream import Sample
from toolkit.text.tokens import TextTokenizer
from toolkit.training.batch_loss import BatchLoss, Texts
from toolkit.training.contrastive import cached_terms, gather_vectors
from toolkit.training.objective import Figures
from toolkit.training.teacher import Lesson, Teaching, lesson_of


@dataclasses.dataclass(frozen=True)
class Sentence:
    """One sentence as a row of token ids, with its hash; and the teacher's vector, if any."""

    ids_T: NDArray[np.int64]
    hash: int = FILLER
    taught_E: Vectors | None = None

    @property
    def num_tokens(self) -> int:
        """The number of tokens of both views."""
        return 2 * len(self.ids_T)


@dataclasses.dataclass(frozen=True)
class SimcseBatch:
    """The rows of `num_sentences` sentences, and then the same rows once more. With a teacher also
    their hashes and its vectors."""

    rows: Rows
    num_sentences: int
    hash_B: Tensor | None = None
    taught_BE: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class SimcseObjective:
    """Two dropout views of a sentence are a positive pair; all other sentences are negatives."""

    settings: Simcse
    tokenizer: TextTokenizer
    packed: bool
    low_precision: bool = False
    needs_head: bool = False
    rules: VectorRules = PLAIN_RULES
    teaching: Teaching | None = None

    def encode(self, samples: Sequence[Sample[str]]) -> list[Sentence]:
        """The tokens of each sentence."""
        texts = [sample.content for sample in samples]
        rows = self.tokenizer.encode(texts)
        if self.teaching is None:
            return [Sentence(ids_T) for ids_T in rows]
        hashes = [text_hash(text) for text in texts]
        taught_BE = self.teaching.of_documents(hashes)
        return [Sentence(*each) for each in zip(rows, hashes, taught_BE, strict=True)]

    def collate(self, encoded: Sequence[Sentence]) -> SimcseBatch:
        """The batch of some sentences, each of them twice.

        Both views share a forward pass: dropout differs from row to row anyway, and one pass of
        twice the rows keeps a device busier than two passes.
        """
        views = [sentence.ids_T for sentence in encoded] * 2
        owns = RowMaker(self.tokenizer, rules=self.rules).with_marks(views).owns
        rows = lay_out(views, tokenizer=self.tokenizer, packed=self.packed, owns=owns)
        batch = SimcseBatch(rows, num_sentences=len(encoded))
        taught = [sentence.taught_E for sentence in encoded if sentence.taught_E is not None]
        if not taught:
            return batch
        return dataclasses.replace(
            batch,
            hash_B=torch.tensor([sentence.hash for sentence in encoded]),
            taught_BE=torch.from_numpy(np.stack(taught)),
        )

    def num_units(self, batch: SimcseBatch) -> int:
        """The number of sentences in a batch."""
        return batch.num_sentences

    def terms(
        self, forward: Callable[..., Any], batches: Sequence[SimcseBatch]
    ) -> Iterator[tuple[Tensor, Figures]]:
        """Summed InfoNCE of our rows against the second views of all ranks, however many
        micro-batches hold them."""
        head = pooling_head(self.rules)
        return cached_terms(
            batches,
            embed=lambda batch: embed_rows(forward, batch.rows, head=head),
            loss=functools.partial(self._loss_sum, batches),
        )

    def _loss_sum(
        self, batches: Sequence[SimcseBatch], vectors: Sequence[Tensor]
    ) -> tuple[Tensor, Figures]:
        """The loss of all micro-batches' vectors, each the first views and then the second."""
        first_BD, second_BD = (
            torch.cat(views) for views in zip(*(v.chunk(2) for v in vectors), strict=True)
        )
        candidate_ND = gather_vectors(second_BD, low_precision=self.low_precision)
        num_rows = len(first_BD)
        # The positive of a row is its second view, at the same place among the rows of this rank.
        target_B = torch.arange(num_rows, device=first_BD.device) + comm.rank() * num_rows
        lesson, false = self._taught(batches, target_B=target_B)
        texts: list[Texts] = []
        if self.settings.spread_out_weight:
            # As in InfoNCE, all sentences of a batch count as different.
            first_ND = gather_vectors(first_BD, low_precision=self.low_precision)
            texts = [Texts(first_ND), Texts(candidate_ND)]
        batch_loss = BatchLoss(
            self.settings, target_B=target_B, scale=self.settings.scale, false=false, lesson=lesson
        )
        return batch_loss.of(
            first_BD, positive_BD=second_BD, candidate_ND=candidate_ND, texts=texts
        )

    def _taught(
        self, batches: Sequence[SimcseBatch], *, target_B: Tensor
    ) -> tuple[Lesson | None, FalseNegatives | None]:
        """What the teacher says of the sentences of all ranks, and the negatives that it refuses.
        A sentence's own second view is no candidate of the lesson."""
        taught = [batch.taught_BE for batch in batches if batch.taught_BE is not None]
        hashes = [batch.hash_B for batch in batches if batch.hash_B is not None]
        if not taught:
            return None, None
        assert self.settings.teacher
        taught_BE, hash_B = torch.cat(taught), torch.cat(hashes)
        hash_N = comm.gather_values(hash_B)
        lesson = lesson_of(
            self.settings.teacher,
            query_BE=taught_BE,
            candidate_BE=taught_BE,
            excluded=Excluded(torch.zeros_like(hash_N, dtype=torch.bool), own_B=target_B),
        )
        if lesson.limit is None:
            return lesson, None
        false = FalseNegatives(
            query_B=hash_B,
            positive_B=hash_B,
            candidate_N=hash_N,
            answers_N=hash_N,
            limit=lesson.limit,
        )
        return lesson, false

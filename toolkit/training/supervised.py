"""Supervised contrastive training with hard negatives, instructions and candidates of all ranks.

LLM2Vec (arXiv 2404.05961, section 4 and appendix G.1), with three things that its released code
leaves out: duplicates are no negatives, symmetric tasks have their instruction on both sides, and
an instruction is not pooled even when the text is cut (unless the recipe pools all tokens).

Shapes: B local queries, n hard negatives of each, K = 2 + n texts of each, T tokens, D width,
E width of a teacher, N candidates of all ranks.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.base.errors import BadInput
from toolkit.batching.batch import Rows, embed_rows, lay_out
from toolkit.encoding.formats import Vectors
from toolkit.encoding.rows import RowMaker
from toolkit.model.distillation import Excluded
from toolkit.model.head import pooling_head
from toolkit.model.losses import FILLER, FalseNegatives
from toolkit.model.vector_rules import PLAIN_RULES, VectorRules
from toolkit.parallel import comm
from toolkit.settings.schema import Supervised
from toolkit.text.pair_stream import TaskPair
from toolkit.text.stream import Sample
from toolkit.text.tokens import TextTokenizer
from toolkit.training.batch_loss import BatchLoss, Texts
from toolkit.training.contrastive import cached_terms, gather_vectors
from toolkit.training.objective import Figures
from toolkit.training.teacher import Lesson, Teaching, lesson_of

Row = tuple[NDArray[np.int64], NDArray[np.bool_]]
NO_QUERY = 0  # stands for the query hash of a hard negative, which answers no query


@dataclasses.dataclass(frozen=True)
class PairTokens:
    """The rows of a query, its positive and its hard negatives, each with the mask of its own
    tokens; the hashes of these texts; the scale of their data set; the teacher's vectors."""

    rows: list[Row]
    hashes: tuple[int, ...]
    scale: float
    taught_KE: Vectors | None = None

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all texts."""
        return sum(len(ids_T) for ids_T, _ in self.rows)


@dataclasses.dataclass(frozen=True)
class PairBatch:
    """Pairs of one data set: all queries, then all positives, then all first negatives, and so on.
    `hash_KB` holds the hashes of the texts of each pair, `taught_KBE` the teacher's vectors, if
    there is one; `scale` is the data set's."""

    rows: Rows
    hash_KB: Tensor
    scale: float
    taught_KBE: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class SupervisedObjective:
    """A query's positive against all positives and hard negatives of the global batch."""

    settings: Supervised
    tokenizer: TextTokenizer
    packed: bool
    low_precision: bool = False
    needs_head: bool = False
    rules: VectorRules = PLAIN_RULES
    teaching: Teaching | None = None

    def encode(self, samples: Sequence[Sample[TaskPair]]) -> list[PairTokens]:
        """Tokenise pairs of one data set.

        Every rank must bring the same number of rows. Where a pair has fewer negatives than its
        data set allows, rows of one token (the positive's first) fill the gaps; `FILLER` as their
        hash keeps them out of every loss.
        """
        task = samples[0].content.task
        num_negatives = min(self.settings.num_hard_negatives, task.max_negatives)
        pairs = [sample.content.pair for sample in samples]
        queries = self._encode([p.query for p in pairs], task.query_instruction)
        texts = [
            text for pair in pairs for text in (pair.positive, *pair.negatives[:num_negatives])
        ]
        documents = iter(self._encode(texts, task.document_instruction))
        encoded = []
        for pair, query in zip(pairs, queries, strict=True):
            positive = next(documents)
            negatives = [next(documents) for _ in pair.negatives[:num_negatives]]
            missing = num_negatives - len(negatives)
            filler = (positive[0][:1], positive[1][:1])
            hashes = (*pair.negative_hashes[:num_negatives], *[FILLER] * missing)
            encoded.append(
                PairTokens(
                    rows=[query, positive, *negatives, *[filler] * missing],
                    hashes=(pair.query_hash, pair.positive_hash, *hashes),
                    scale=self.settings.scales.get(task.name, self.settings.scale),
                )
            )
        return self._taught(encoded)

    def _taught(self, encoded: list[PairTokens]) -> list[PairTokens]:
        """The same, with the teacher's vectors; all are looked up at once."""
        if self.teaching is None:
            return encoded
        queries_BE = self.teaching.of_queries([one.hashes[0] for one in encoded])
        documents = [number for one in encoded for number in one.hashes[1:]]
        documents_BKE = self.teaching.of_documents(documents).reshape(
            len(encoded), -1, queries_BE.shape[1]
        )
        taught_BKE = np.concatenate([queries_BE[:, None], documents_BKE], axis=1)
        return [
            dataclasses.replace(one, taught_KE=taught_KE)
            for one, taught_KE in zip(encoded, taught_BKE, strict=True)
        ]

    def collate(self, encoded: Sequence[PairTokens]) -> PairBatch:
        """The batch of some pairs of one data set."""
        num_texts = len(encoded[0].rows)
        texts = [pair.rows[text] for text in range(num_texts) for pair in encoded]
        rows = lay_out(
            [ids_T for ids_T, _ in texts],
            tokenizer=self.tokenizer,
            packed=self.packed,
            owns=[own_T for _, own_T in texts],
        )
        hashes = np.array([pair.hashes for pair in encoded], dtype=np.int64)
        taught = [pair.taught_KE for pair in encoded if pair.taught_KE is not None]
        return PairBatch(
            rows,
            hash_KB=torch.from_numpy(hashes.T.copy()),
            scale=encoded[0].scale,
            taught_KBE=torch.from_numpy(np.stack(taught, axis=1)) if taught else None,
        )

    def num_units(self, batch: PairBatch) -> int:
        """The number of queries in a batch."""
        return batch.hash_KB.shape[1]

    def terms(
        self, forward: Callable[..., Any], batches: Sequence[PairBatch]
    ) -> Iterator[tuple[Tensor, Figures]]:
        """Summed InfoNCE of our queries against the candidates of all ranks, however many
        micro-batches hold them."""
        head = pooling_head(self.rules)
        return cached_terms(
            batches,
            embed=lambda batch: embed_rows(forward, batch.rows, head=head),
            loss=functools.partial(self._loss_sum, batches),
        )

    def _loss_sum(
        self, batches: Sequence[PairBatch], vectors: Sequence[Tensor]
    ) -> tuple[Tensor, Figures]:
        # Each micro-batch is grouped by kind of text: regroup, so that all queries come first.
        hash_KB = torch.cat([batch.hash_KB for batch in batches], dim=1)
        parts = [vectors_of_batch.chunk(len(hash_KB)) for vectors_of_batch in vectors]
        query_BD, positive_BD, *negatives = (torch.cat(texts) for texts in zip(*parts, strict=True))
        candidate_ND = gather_vectors(
            torch.cat([positive_BD, *negatives]), low_precision=self.low_precision
        )
        num_rows, local = len(query_BD), len(query_BD) * (len(hash_KB) - 1)
        # A candidate that answers the same query elsewhere in the global batch is no negative.
        answers_KB = torch.full_like(hash_KB[1:], NO_QUERY)
        answers_KB[0] = hash_KB[0]
        hash_N = comm.gather_values(hash_KB[1:].flatten())
        lesson = self._lesson(batches, filler_N=hash_N == FILLER)
        false = FalseNegatives(
            query_B=hash_KB[0],
            positive_B=hash_KB[1],
            candidate_N=hash_N,
            answers_N=comm.gather_values(answers_KB.flatten()),
            margin=self.settings.false_negative_margin,
            limit=lesson.limit if lesson else None,
        )
        target_B = torch.arange(num_rows, device=query_BD.device) + comm.rank() * local
        texts = self._spread_texts(query_BD, candidate_ND=candidate_ND, false=false)
        batch_loss = BatchLoss(
            self.settings,
            target_B=target_B,
            scale=batches[0].scale,
            false=false,
            lesson=lesson,
            dims=self.settings.matryoshka_dims,
        )
        return batch_loss.of(
            query_BD, positive_BD=positive_BD, candidate_ND=candidate_ND, texts=texts
        )

    def _spread_texts(
        self, query_BD: Tensor, *, candidate_ND: Tensor, false: FalseNegatives
    ) -> list[Texts]:
        """The queries and the positives of all ranks. Hard negatives are not among them: they are
        near to their positives by intent."""
        if not self.settings.spread_out_weight:
            return []
        query_ND = gather_vectors(query_BD, low_precision=self.low_precision)
        positive_N = false.candidate_N.where(false.answers_N != NO_QUERY, FILLER)
        return [
            Texts(query_ND, comm.gather_values(false.query_B)),
            Texts(candidate_ND, positive_N),
        ]

    def _lesson(self, batches: Sequence[PairBatch], *, filler_N: Tensor) -> Lesson | None:
        taught = [batch.taught_KBE for batch in batches if batch.taught_KBE is not None]
        if not taught:
            return None
        assert self.settings.teacher
        taught_KBE = torch.cat(taught, dim=1)
        return lesson_of(
            self.settings.teacher,
            query_BE=taught_KBE[0],
            candidate_BE=taught_KBE[1:].flatten(0, 1),
            excluded=Excluded(filler_N),
        )

    def _encode(self, texts: Sequence[str], instruction: str) -> list[Row]:
        tokenizer, prefix = self.tokenizer, ""
        maker = RowMaker(tokenizer, rules=self.rules)
        if instruction:
            prefix = self.settings.instruction_format.format(instruction=instruction)
            if not maker.leaves_room(prefix):
                raise BadInput(
                    f"data.max_tokens={tokenizer.max_tokens}: the instruction {instruction!r} "
                    "leaves no room for the text"
                )
        made = maker.rows(texts, instruction=prefix)
        # A row without tokens is laid out as one padding token.
        owns = made.owns or [
            tokenizer.is_own(ids_T) if len(ids_T) else np.zeros(1, dtype=np.bool_)
            for ids_T in made.rows
        ]
        return list(zip(made.rows, owns, strict=True))

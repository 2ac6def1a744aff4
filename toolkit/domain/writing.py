"""Questions about the documents of a unit: the same ones, whoever writes them and when.

Knows units, prompts and draws. Refuses to know how units are shared, and which questions are good.

The draws of a question are numbers of a counter (Philox) keyed by the seed, the id of the document
and the number of the question. Rows that are computed together are always the same ones: a batch
depends on its unit alone, and units depend on the plan alone.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from toolkit.domain.prompts import Frame, passage_of, question_of, tokens_of
from toolkit.settings.questions_schema import QuestionsRecipe

if TYPE_CHECKING:
    from toolkit.domain.decoder import Decoder

Record = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Question:
    """Question `number` (from 0) of a document. `tokens` were written for it; `ended`: the model
    came to an end by itself."""

    id: str
    number: int
    question: str
    tokens: int
    ended: bool


def draws_of(seed: int, *, document: str, number: int, steps: int) -> NDArray[np.float64]:
    """The draws (steps,) of a question, each from 0 to 1."""
    name = f"{seed}\0{document}\0{number}".encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key)).random(steps)


class Writer:
    """Writes the questions of documents with a loaded model."""

    def __init__(self, recipe: QuestionsRecipe, *, decoder: "Decoder", frame: Frame) -> None:
        from toolkit.domain.decoder import Choice  # not above: what reads questions needs no torch

        generator = recipe.generator
        self._decoder, self._frame = decoder, frame
        self._seed, self._times = recipe.seed, recipe.per_document
        self._max_tokens, self._steps = recipe.corpus.max_tokens, generator.max_new_tokens
        self._batch = max(1, generator.batch_rows // recipe.per_document)
        self._choice = Choice(generator.temperature, generator.top_p)

    def questions(
        self,
        records: Sequence[Record],
        *,
        may_go_on: Callable[[], bool],
        on_batch: Callable[[int, int], None],
    ) -> list[Question] | None:
        """The questions of the documents of a unit, in order; None when `may_go_on` said no, which
        is asked before each batch. A document without text gets none. `on_batch` is told documents
        and tokens, read and written; what all prompts share is read once, and does not count."""
        tokenizer = self._decoder.tokenizer
        passages = [
            passage_of(record["text"], tokenizer=tokenizer, max_tokens=self._max_tokens)
            for record in records
        ]
        rows = tokens_of(passages, frame=self._frame, tokenizer=tokenizer)
        found: list[list[Question]] = [[] for _ in records]
        for places in self._batches(records, rows):
            if not may_go_on():
                return None
            written = self._decoder.continued(
                [rows[place] for place in places],
                shared=self._frame.shared_ids,
                draws_BKS=np.stack([self._draws(records[place]["id"]) for place in places]),
                choice=self._choice,
            )
            for place, some in zip(places, written, strict=True):
                found[place] = [
                    Question(
                        records[place]["id"], number, question_of(one.text), one.tokens, one.ended
                    )
                    for number, one in enumerate(some)
                ]
            num_written = sum(one.tokens for some in written for one in some)
            own = sum(len(rows[place]) - len(self._frame.shared_ids) for place in places)
            on_batch(len(places), own + num_written)
        return [one for some in found for one in some]

    def _batches(
        self, records: Sequence[Record], rows: Sequence[Sequence[int]]
    ) -> Iterator[list[int]]:
        """The places of the documents with text, those of about equal length together."""
        places = sorted(
            (place for place, record in enumerate(records) if record["text"].strip()),
            key=lambda place: (len(rows[place]), place),
        )
        for start in range(0, len(places), self._batch):
            yield places[start : start + self._batch]

    def _draws(self, document: str) -> NDArray[np.float64]:
        return np.stack(
            [
                draws_of(self._seed, document=document, number=number, steps=self._steps)
                for number in range(self._times)
            ]
        )

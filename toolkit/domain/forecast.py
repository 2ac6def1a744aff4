"""What writing questions will need: documents, tokens, hours and cost. A sample of the passages is
tokenised as the program does it. No weights are read.

Refuses to know how fast a machine writes: how many rows it writes at once decides that, and not its
peak. A short run says it.
"""

import dataclasses
from pathlib import Path

import numpy as np

from toolkit.domain.documents import choose
from toolkit.domain.prompts import (
    CHARS_PER_TOKEN,
    frame_of,
    passage_of,
    read_examples,
    read_prompt,
    tokens_of,
    whole_prompt,
)
from toolkit.encoding.forecast import Total, strata_of, total_of
from toolkit.model.tokenizer import load_tokenizer
from toolkit.settings.model_source import resolve_model
from toolkit.settings.questions_schema import QuestionsRecipe, check_questions
from toolkit.text.shards import open_shards


@dataclasses.dataclass(frozen=True)
class QuestionForecast:
    """What questions need: `documents`, of which `sampled` were read; tokens `read` (a document is
    read once for all its questions, and what all prompts share once for all), and the most that
    are `written`."""

    documents: int
    sampled: int
    read: Total
    written: int

    def lines(self, *, per_document: int, tokens_per_s: float | None, world: int) -> list[str]:
        """The forecast for people, on `world` processes that do `tokens_per_s` each."""
        tokens = self.read.value + self.written
        found = [
            f"{self.documents:,} documents (read: {self.sampled:,}), {per_document} questions "
            f"each: {self.documents * per_document:,} questions",
            f"  tokens: {self.read.value:,.0f} +- {2 * self.read.error:,.0f} read (95 %), "
            f"{self.written:,} written at most",
        ]
        if tokens_per_s is None:
            return [*found, "  time: with --tokens-per-s, which a short run says in its last lines"]
        hours = tokens / tokens_per_s / world / 3600
        each = hours * world / self.documents * 1000
        return [
            *found,
            f"  time: at most {hours:,.2f} h on {world} processes, each {tokens_per_s:,.0f} "
            f"tokens/s; {each:,.2f} hours of one per thousand documents",
        ]


def forecast(recipe: QuestionsRecipe, *, sample_rows: int) -> QuestionForecast:
    """The forecast of a recipe. Raises `BadInput` for what toolkit.questions would refuse too."""
    check_questions(recipe)
    prompt = read_prompt(None if recipe.prompt is None else Path(recipe.prompt))
    examples = read_examples(None if recipe.examples is None else Path(recipe.examples))
    shards = open_shards(Path(recipe.corpus.input), verify=False)
    rows_D = choose(recipe, shards).rows_D
    tokenizer = load_tokenizer(resolve_model(recipe.generator.model))
    frame = frame_of(
        whole_prompt(prompt, examples), tokenizer=tokenizer, chat=recipe.generator.chat
    )
    max_tokens = recipe.corpus.max_tokens
    most_chars = max_tokens * CHARS_PER_TOKEN
    strata = strata_of(np.minimum(shards.num_chars[rows_D], most_chars), sample_rows=sample_rows)
    drawn = [number for stratum in strata for number in stratum.drawn]
    passages = [
        passage_of(shards.text(int(rows_D[number])), tokenizer=tokenizer, max_tokens=max_tokens)
        for number in drawn
    ]
    rows = tokens_of(passages, frame=frame, tokenizer=tokenizer)
    own = [len(row) - len(frame.shared_ids) for row in rows]
    return QuestionForecast(
        documents=len(rows_D),
        sampled=len(drawn),
        read=total_of(strata, dict(zip(drawn, map(float, own), strict=True))),
        written=len(rows_D) * recipe.per_document * recipe.generator.max_new_tokens,
    )

"""What a recipe may say about questions that a causal model writes about documents.

As in `schema`, which has all other sections.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from toolkit.base.errors import BadInput
from toolkit.settings.section import Count, Fraction, Natural, Probability, Section, Seed, Text


class Generator(Section):
    """The causal language model that writes, and how it chooses tokens.

    `model` is a hub name, a model folder, or a finished run that kept its head. A question is at
    most `max_new_tokens` tokens long. `temperature` 0 takes the likeliest token; otherwise tokens
    are drawn from the likeliest ones that have the probability `top_p` together. `batch_rows`
    questions are written at once. `chat`: ask in the tokenizer's chat template; auto does so where
    there is one."""

    model: Text
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    chat: bool | Literal["auto"] = "auto"
    max_new_tokens: Annotated[int, Field(ge=4)] = 40
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.6
    top_p: Probability = 0.9
    batch_rows: Count = 24

    def facts(self) -> dict[str, Any]:
        """The settings that decide what is written, besides the content of the model."""
        assert self.dtype != "auto"
        return self.model_dump(mode="json", exclude={"model", "chat"})


class QuestionCorpus(Section):
    """A directory of shards. A unit of work has `unit_documents` documents on average. The model
    reads the first `max_tokens` tokens of a document."""

    input: Text
    unit_documents: Count = 64
    max_tokens: Annotated[int, Field(ge=8)] = 256


class QuestionFilters(Section):
    """Which questions are left out. Lengths are in words.

    A question is a copy if a run of more than `max_copied_words` of its words stands in the text
    and makes up more than `max_copied_share` of it. It loops if three words in a row come again
    more than `max_repeats` times, or a word follows itself. `language`: same leaves out what is
    clearly in another language than its document; any keeps every language; a code (en) is the
    language that all questions must have. `unfinished` keeps what was cut at
    `generator.max_new_tokens`.

    `round_trip_top` (null: not looked at): a question must bring back its document among so many
    first results of BM25 over the whole corpus."""

    min_words: Count = 3
    max_words: Count = 32
    max_copied_words: Count = 7
    max_copied_share: Fraction = 0.8
    max_repeats: Natural = 1
    language: Annotated[str, Field(pattern=r"^(same|any|[a-z]{2})$")] = "same"
    unfinished: bool = False
    round_trip_top: Count | None = 10


class OwnWords(Section):
    """Pairs that the documents hold by themselves, beside the questions: the title of a document
    (`titles`), and so many of its sentences (`sentences`) of at least `min_words` words, each with
    the text without it. In a share `left_in` of them it stays in the text."""

    titles: bool = False
    sentences: Natural = 0
    left_in: Fraction = 0.1
    min_words: Count = 4


class QuestionsRecipe(Section):
    """Questions that a decoder writes about documents: `per_document` for each document of
    `corpus.input` that has text.

    `documents` (Parquet with the columns id and part, both text) says which documents: those whose
    part is `part`; null means all. `prompt` is a text file with {passage} and, if it shows
    examples, {examples}; `examples` are JSON lines of passage and question. null is what the
    toolkit ships. `instruction` becomes that of the queries in the training pairs. `own_words` adds
    data sets to the pairs that no model writes.

    `schedule` and `lease_s` say how workers share the units, as in an embedding."""

    kind: Literal["questions"]
    output_dir: Text
    generator: Generator
    corpus: QuestionCorpus
    documents: Text | None = None
    part: Literal["train", "dev", "test"] | None = None
    per_document: Annotated[int, Field(ge=1, le=1000)] = 3
    prompt: Text | None = None
    examples: Text | None = None
    instruction: str = ""
    seed: Seed = 42
    filters: QuestionFilters = QuestionFilters()
    own_words: OwnWords = OwnWords()
    schedule: Literal["auto", "alone", "claim", "mpi"] = "auto"
    lease_s: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 60.0


def check_questions(recipe: QuestionsRecipe) -> None:
    """Raise `BadInput` for settings that contradict each other."""
    if (recipe.documents is None) != (recipe.part is None):
        raise BadInput("documents and part belong together: give both, or neither")
    if not recipe.generator.temperature and recipe.per_document > 1:
        raise BadInput(
            f"generator.temperature=0 writes the same question {recipe.per_document} times; give "
            "per_document=1, or a temperature"
        )
    filters = recipe.filters
    if filters.min_words > filters.max_words:
        raise BadInput(
            f"filters.min_words={filters.min_words} is more than "
            f"filters.max_words={filters.max_words}"
        )

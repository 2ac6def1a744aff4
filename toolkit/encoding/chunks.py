"""Long documents as overlapping chunks of tokens: one row per chunk, with its characters.

Refuses to know models: a chunk is a row of token ids, embedded like a text of just these tokens,
unless its document is read whole (`late_chunks`).
Shapes: T tokens of a document, C tokens of a chunk.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import BadInput
from toolkit.encoding.units import ChunkRules
from toolkit.settings.schema import TEXT_FORMAT, EmbedRecipe
from toolkit.text.tokens import Places, TextTokenizer


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A piece of a text: its characters from `begin` to `end`, and its tokens, with the special
    ones that begin and end every text. `window` is the window of its document in which it is read,
    if it is not read alone.

    The chunks of a text leave out nothing but white space.
    """

    text: int
    number: int
    begin: int
    end: int
    ids_C: NDArray[np.int64]
    window: int | None = None


def rules_of(recipe: EmbedRecipe) -> ChunkRules | None:
    """The chunk rules of a recipe, checked; None where texts are cut off instead."""
    tokens, overlap = recipe.corpus.chunk_tokens, recipe.corpus.chunk_overlap
    context = recipe.corpus.chunk_context
    if tokens is None:
        if context != "chunk":
            raise BadInput(f"corpus.chunk_context={context}: needs corpus.chunk_tokens")
        if overlap:
            raise BadInput(f"corpus.chunk_overlap={overlap}: needs corpus.chunk_tokens")
        return None
    if tokens > recipe.encoder.max_tokens:
        raise BadInput(
            f"corpus.chunk_tokens={tokens}: the encoder takes at most encoder.max_tokens="
            f"{recipe.encoder.max_tokens}"
        )
    if recipe.encoder.text_format != TEXT_FORMAT:
        raise BadInput(
            f"corpus.chunk_tokens={tokens}: chunks have no encoder.text_format, but queries "
            f"would have it (it is {recipe.encoder.text_format!r})"
        )
    if recipe.encoder.echo:
        raise BadInput(
            f"corpus.chunk_tokens={tokens}: chunks are read once, and encoder.echo=true reads a "
            "text twice; leave out one of them"
        )
    rules = ChunkRules(tokens, overlap, context)
    if recipe.encoder.prompt and not rules.is_late:
        raise no_prompt(recipe.encoder.prompt)
    if overlap > tokens // 2:
        raise BadInput(f"corpus.chunk_overlap={overlap}: at most half of chunk_tokens={tokens}")
    return rules


def no_prompt(prompt: str) -> BadInput:
    """The error for chunks of an encoder that puts a prompt before each text."""
    return BadInput(
        f"corpus.chunk_tokens: chunks have no prompt, and this encoder puts {prompt!r} before each "
        'text; give encoder.prompt="", and toolkit.search --prompt for queries, or '
        "corpus.chunk_context=document, which puts it before a document"
    )


def chunks_of(texts: Sequence[str], *, tokenizer: TextTokenizer, rules: ChunkRules) -> list[Chunk]:
    """Cut texts into chunks of at most `rules.tokens`; a text without tokens is one empty chunk."""
    chunks = []
    for number_of_text, tokens in enumerate(tokenizer.places(texts)):
        spans = spans_of(len(tokens.ids_T), tokenizer=tokenizer, rules=rules)
        for number, (start, stop) in enumerate(spans):
            begin, end = characters_of(texts[number_of_text], tokens, start=start, stop=stop)
            ids_C = tokenizer.as_row(tokens.ids_T[start:stop])
            chunks.append(Chunk(number_of_text, number, begin=begin, end=end, ids_C=ids_C))
    return chunks


def spans_of(
    num_tokens: int, *, tokenizer: TextTokenizer, rules: ChunkRules
) -> list[tuple[int, int]]:
    """The first token of each chunk of a text with so many own tokens, and the one after its
    last."""
    # Each chunk also gets the special tokens.
    size = rules.tokens - tokenizer.num_added
    step = size - rules.overlap
    if step < 1:
        raise BadInput(
            f"corpus.chunk_tokens={rules.tokens}: {tokenizer.num_added} of them are put around a "
            f"text by the tokenizer, and {rules.overlap} are shared; give at least "
            f"{tokenizer.num_added + rules.overlap + 1}"
        )
    # No start so late that a chunk would hold only tokens which it shares.
    starts = range(0, max(1, num_tokens - rules.overlap), step)
    return [(start, min(start + size, num_tokens)) for start in starts]


def characters_of(text: str, tokens: Places, *, start: int, stop: int) -> tuple[int, int]:
    """The characters of the tokens from `start` to before `stop`.

    A normaliser may join a letter and its accent, or drop the accent, so that no token claims that
    character. What lies between two tokens and is no white space belongs to the first of them.
    """
    num_tokens = len(tokens.ids_T)
    begin = int(tokens.begin_T[start]) if num_tokens else len(text)
    if start == 0:
        begin = len(text[:begin]) - len(text[:begin].lstrip())
    end = int(tokens.end_T[stop - 1]) if num_tokens else 0
    following = int(tokens.begin_T[stop]) if stop < num_tokens else len(text)
    return begin, max(begin, end + len(text[end:following].rstrip()))


def records_of(
    chunks: Sequence[Chunk], *, records: Sequence[Mapping[str, Any]], rows: Sequence[int]
) -> list[dict[str, Any]]:
    """The record that is written for each chunk. `records` are those of the texts, and `rows` their
    rows in the corpus."""
    return [
        {
            "id": records[chunk.text]["id"],
            "title": records[chunk.text]["title"],
            "key": records[chunk.text]["key"],
            "row": rows[chunk.text],
            "chunk": chunk.number,
            "begin": chunk.begin,
            "end": chunk.end,
            **({} if chunk.window is None else {"window": chunk.window}),
        }
        for chunk in chunks
    ]

"""Chunks of documents that are read whole: late chunking (Guenther et al. 2024, arXiv 2409.04701).

The chunks are the same as those that are read alone (`chunks`), but the model reads their document,
and the states of a chunk's own tokens are pooled. Refuses to know models.

Shapes: T own tokens of a document, P tokens of a prompt, G pooled tokens of a chunk.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from toolkit.base.errors import BadInput
from toolkit.encoding.chunks import Chunk, characters_of, spans_of
from toolkit.encoding.units import ChunkRules
from toolkit.text.tokens import Ids, Places, TextTokenizer

# Poolings that take all tokens of a chunk alike, by the names of sentence-transformers. The others
# take one token of the whole text, which a chunk does not have.
POOLINGS = ("mean", "mean_sqrt_len_tokens", "weightedmean", "max")


@dataclasses.dataclass(frozen=True)
class Window:
    """A row of token ids that the model reads, and which chunks' vectors come of it: the number of
    each chunk, and the places in the row of the tokens that are pooled for it."""

    ids: Ids
    chunks: Sequence[tuple[int, Ids]]


def late_chunks_of(
    texts: Sequence[str],
    *,
    tokenizer: TextTokenizer,
    rules: ChunkRules,
    prompt: str = "",
    all_tokens: bool = False,
) -> tuple[list[Chunk], list[Window]]:
    """The chunks of texts, as `chunks_of` gives them, and the windows in which they are read, each
    of at most the tokenizer's `max_tokens`.

    `prompt` stands at the beginning of each window, and is never pooled, nor are the tokens that
    the tokenizer puts around a text; special tokens within a text are, with `all_tokens`. Raises
    `BadInput` when the prompt leaves no room for a chunk.
    """
    chunks: list[Chunk] = []
    windows: list[Window] = []
    for number, tokens in enumerate(tokenizer.places([prompt + text for text in texts])):
        prompt_P, own = _apart(tokens, num_chars=len(prompt))
        room = room_of(len(prompt_P), tokenizer=tokenizer, rules=rules, prompt=prompt)
        spans = spans_of(len(own.ids_T), tokenizer=tokenizer, rules=rules)
        begins, window_of = windows_of(spans, num_tokens=len(own.ids_T), room=room)
        pooled_of: list[list[tuple[int, Ids]]] = [[] for _ in begins]
        for chunk, ((start, stop), window) in enumerate(zip(spans, window_of, strict=True)):
            ids_C = own.ids_T[start:stop]
            before = len(tokenizer.prefix_ids) + len(prompt_P) - begins[window]
            places_G = np.arange(start, stop)[all_tokens | tokenizer.is_own(ids_C)] + before
            pooled_of[window].append((len(chunks), places_G))
            begin, end = characters_of(texts[number], own, start=start, stop=stop)
            row = tokenizer.as_row(ids_C)
            chunks.append(Chunk(number, chunk, begin=begin, end=end, ids_C=row, window=window))
        for first, pooled in zip(begins, pooled_of, strict=True):
            ids = np.concatenate([prompt_P, own.ids_T[first : first + room]])
            windows.append(Window(tokenizer.as_row(ids), pooled))
    return chunks, windows


def room_of(
    num_prompt: int, *, tokenizer: TextTokenizer, rules: ChunkRules, prompt: str = ""
) -> int:
    """How many of a document's own tokens a window holds beside those of the prompt. Raises
    `BadInput` if they are fewer than a chunk has."""
    room = tokenizer.max_tokens - num_prompt
    if room < 1:
        raise BadInput(
            f"the prompt {prompt[:80]!r} has {num_prompt} tokens and fills all of "
            f"encoder.max_tokens={tokenizer.max_tokens}; give a shorter one"
        )
    if rules.tokens > room:
        raise BadInput(
            f"corpus.chunk_tokens={rules.tokens}: with the {num_prompt} tokens of the prompt "
            f"{prompt!r} more than encoder.max_tokens={tokenizer.max_tokens}; give at most "
            f"{room}, or another prompt"
        )
    return room - tokenizer.num_added


def windows_of(
    spans: Iterable[tuple[int, int]], *, num_tokens: int, room: int
) -> tuple[list[int], list[int]]:
    """The first token of each window of a document, and the number of the window in which each
    chunk is read. `spans` are the tokens of the chunks, the first of which is the longest.

    A document of at most `room` tokens is one window. A longer one is read in windows of `room`
    tokens, so that each chunk has a margin on both sides, unless the document ends there: a quarter
    of the window, or half of what the chunk leaves of it. A window begins a margin before its first
    chunk, and holds as many chunks as have a margin behind them.
    """
    spans = list(spans)
    size = spans[0][1] - spans[0][0]
    margin = min(room // 4, (room - size) // 2)
    begins: list[int] = []
    window_of = []
    for start, stop in spans:
        reaches_the_end = bool(begins) and begins[-1] + room >= num_tokens
        if not begins or (stop > begins[-1] + room - margin and not reaches_the_end):
            begins.append(max(0, min(start - margin, num_tokens - room)))
        window_of.append(len(begins) - 1)
    return begins, window_of


def check_poolings(modes: Sequence[str]) -> None:
    """Raise `BadInput` for a pooling that is not one of a chunk's own tokens."""
    if others := [mode for mode in modes if mode not in POOLINGS]:
        raise BadInput(
            f"corpus.chunk_context=document: pools the states of a chunk's own tokens, and this "
            f"encoder pools by {others[0]!r}, which is one token of the whole text; give "
            "encoder.pooling=mean, weighted_mean or max, or corpus.chunk_context=chunk"
        )


def _apart(tokens: Places, *, num_chars: int) -> tuple[Ids, Places]:
    """The ids (P,) of a prompt of so many characters, and the own tokens of the text behind it. A
    token that spans the end of the prompt and the beginning of the text belongs to the text, as in
    `TextTokenizer.encode_after`."""
    behind = np.flatnonzero(tokens.end_T > num_chars) if num_chars else [0]
    first = int(behind[0]) if len(behind) else len(tokens.ids_T)
    begin_T = np.maximum(tokens.begin_T[first:] - num_chars, 0)
    return tokens.ids_T[:first], Places(
        tokens.ids_T[first:], begin_T, tokens.end_T[first:] - num_chars
    )

"""A model's tokenizer for `toolkit.text`: `model` finds it by the model's name, `text` uses it.

No weights are loaded for it.
"""

from pathlib import Path

from tokenizers import normalizers

from toolkit.base.console import Progress
from toolkit.model.tokenizer import load_tokenizer, special_ids, training_tokenizer
from toolkit.settings.model_schema import Model
from toolkit.settings.model_source import ModelSource
from toolkit.text.held_out import NOTHING, HeldOut
from toolkit.text.token_shards import (
    TokenFiles,
    finish_token_files,
    make_token_files,
    open_tokens,
)
from toolkit.text.tokens import TextTokenizer


def text_tokenizer(
    source: ModelSource,
    *,
    max_tokens: int,
    num_embeddings: int | None = None,
    lower_case: bool = False,
    trained: Model | None = None,
) -> TextTokenizer:
    """The tokenizer of a model, which cuts texts at `max_tokens` tokens. `lower_case`: it first
    puts a text into small letters. `trained`: it is changed for training (`training_tokenizer`).

    With `num_embeddings` it refuses ids for which the model has no vector (see `TextTokenizer`)."""
    if trained is None:
        tokenizer = load_tokenizer(source)
    else:
        tokenizer = training_tokenizer(source, model=trained)
    backend = tokenizer.backend_tokenizer
    if lower_case:
        others = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *others])
    return TextTokenizer(
        backend,
        special_ids=special_ids(tokenizer),
        pad_id=tokenizer.pad_token_id,
        max_tokens=max_tokens,
        num_embeddings=num_embeddings,
    )


def tokenize_shards(
    shards: Path,
    *,
    tokenizer: TextTokenizer,
    part: int,
    parts: int,
    held_out: HeldOut = NOTHING,
) -> str:
    """Make the token files of every `parts`-th shard from shard `part` on; returns a line for
    people about what is done. A block has as many tokens as the tokenizer's `max_tokens`. Raises
    `BadInput` as `make_token_files` does."""
    files = TokenFiles(
        shards=shards.absolute(),
        tokenizer=tokenizer,
        block_tokens=tokenizer.max_tokens,
        held_out=held_out,
    )
    mine = tokenize_part(files, part=part, parts=parts, title=f"tokenise {part + 1} of {parts}")
    if finish_token_files(files):
        return open_tokens(files).summary
    return f"{files.directory}: {mine} shards done; the other tasks have theirs to do"


def tokenize_part(
    files: TokenFiles, *, part: int, parts: int, title: str, shown: bool = True
) -> int:
    """Make the token files of every `parts`-th shard from shard `part` on, with lines that show the
    progress; returns the number of these shards."""
    mine = len(range(part, len(files.sources), parts))
    progress = Progress(title, total=mine, unit="shards", shown=shown)
    make_token_files(files, part=part, parts=parts, on_shard=lambda _: progress.advance(1))
    progress.close()
    return mine

"""A model's tokenizer as `toolkit.text` uses it: where `model` knows names and `text` knows tokens.

No model is loaded for it.
"""

from pathlib import Path

from toolkit.base.console import Progress
from toolkit.model.tokenizer import load_tokenizer, special_ids
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
    source: ModelSource, *, max_tokens: int, num_embeddings: int | None = None
) -> TextTokenizer:
    """The tokenizer of a model that cuts texts at a length.

    With `num_embeddings` it refuses what the model has no vector of (see `TextTokenizer`)."""
    tokenizer = load_tokenizer(source)
    return TextTokenizer(
        tokenizer.backend_tokenizer,
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
    """Make the token files of every parts-th shard from `part` on; returns what there is, for
    people. Blocks are as long as the tokenizer cuts. Raises `BadInput` (`make_token_files`)."""
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
    """Make the token files of every parts-th shard from `part` on, with a line now and then;
    returns how many shards these are."""
    mine = len(range(part, len(files.sources), parts))
    progress = Progress(title, total=mine, unit="shards", shown=shown)
    make_token_files(files, part=part, parts=parts, on_shard=lambda _: progress.advance(1))
    progress.close()
    return mine

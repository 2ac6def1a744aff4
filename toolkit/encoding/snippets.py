"""The beginnings of the texts of a corpus, for people who look at hits."""

from pathlib import Path

from toolkit.base.errors import BadInput
from toolkit.encoding.store import VectorStore
from toolkit.text.shards import ShardSet, open_shards

SNIPPET_CHARS = 160


def corpus_of(store: VectorStore, *, corpus: Path | None, verify: bool) -> ShardSet:
    """The shards that were encoded, at the place that `corpus` or else the manifest names; `verify`
    as in `open_shards`. Raises `BadInput` when they are missing, or are other shards."""
    shards = open_shards(corpus or Path(store.manifest["corpus_path"]), verify=verify)
    if shards.digest != store.manifest["corpus"]:
        raise BadInput(f"{store.directory}: not of this corpus; give --corpus its shards")
    return shards


def snippet_of(text: str, *, chars: int = SNIPPET_CHARS) -> str:
    """The beginning of a text as one line of at most `chars` characters, cut at a blank if there is
    one in its second half."""
    line = " ".join(text[: 8 * chars].split())
    if len(line) <= chars:
        return line
    cut = line[: chars - 1]
    blank = cut.rfind(" ")
    return (cut[:blank] if blank > chars // 2 else cut) + "…"

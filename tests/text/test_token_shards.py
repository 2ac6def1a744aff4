"""Token files: every token of every document once, restarts, damage, and the reference's blocks."""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from tests.conftest import contents
from tests.text.making import shard_articles
from toolkit.base.errors import BadInput
from toolkit.base.sealed import SELF_DIGEST, content_digest
from toolkit.text import tokens as tokens_module
from toolkit.text.records import Article
from toolkit.text.shards import open_shards
from toolkit.text.stream import Blocks, Stream
from toolkit.text.token_shards import (
    TokenFiles,
    TokenSet,
    finish_token_files,
    make_token_files,
    open_tokens,
)
from toolkit.text.tokens import TextTokenizer

BOS, EOS, PAD = 1, 2, 3


@pytest.fixture(scope="module")
def inner(tiny_model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_model / "tokenizer.json"))


@pytest.fixture
def articles() -> list[Article]:
    words = [f"Word{number} is right here." for number in range(400)]
    lengths = [0, 3, 400, 1, 25, 90, 0, 7, 12, 60, 33, 2]
    texts = [" ".join(words[:length]) or "." for length in lengths]
    return [Article(id=str(n), title="", url="", text=text) for n, text in enumerate(texts)]


@pytest.fixture
def files(tmp_path: Path, articles: list[Article], inner: Tokenizer) -> TokenFiles:
    shards = shard_articles(articles, output=tmp_path / "s", rows_per_shard=5)
    return TokenFiles(shards=shards, tokenizer=of(inner), block_tokens=32)


def of(inner: Tokenizer) -> TextTokenizer:
    return TextTokenizer(inner, special_ids=[BOS, EOS, PAD], pad_id=PAD, max_tokens=32)


def made(files: TokenFiles, *, parts: int = 1) -> TokenSet:
    for part in range(parts):
        make_token_files(files, part=part, parts=parts)
    assert finish_token_files(files)
    return open_tokens(files)


def whole_documents(files: TokenFiles, inner: Tokenizer) -> list[list[int]]:
    rows = open_shards(files.shards)
    return [
        inner.encode(rows.text(row), add_special_tokens=False).ids for row in range(rows.num_rows)
    ]


def test_blocks_hold_every_token_once_and_pieces_stay_in_order(
    files: TokenFiles, inner: Tokenizer
) -> None:
    opened = made(files)
    documents = whole_documents(files, inner)
    blocks = [opened.block(index) for index in range(opened.num_blocks)]
    assert all(sum(map(len, block)) <= 32 for block in blocks)
    pieces = [piece.tolist() for block in blocks for piece in block]
    assert all(piece[0] == BOS and len(piece) > 1 for piece in pieces)
    bare = [piece[1:] for piece in pieces]
    assert sorted(itertools.chain(*bare)) == sorted(itertools.chain(*documents))
    # Each is a run of tokens of one document.
    texts = [" ".join(map(str, document)) + " " for document in documents]
    for piece in bare:
        assert any(" ".join(map(str, piece)) + " " in text for text in texts)
    assert opened.manifest["tokens"] == sum(map(len, documents))
    assert opened.manifest["documents"] == len(documents)
    uncut = sum(document in bare for document in documents if document)
    assert opened.manifest["cut_documents"] == sum(map(bool, documents)) - uncut


def test_a_long_document_is_cut_where_sentences_start(files: TokenFiles, inner: Tokenizer) -> None:
    opened = made(files)
    pieces = [piece for index in range(opened.num_blocks) for piece in opened.block(index)]
    texts = [inner.decode(piece[1:].tolist()).strip() for piece in pieces]
    cut = [text for text in texts if not text.startswith(("Word", "."))]
    # Sentences of four tokens and more: a piece that begins elsewhere would be common.
    assert not cut


def test_parts_and_restarts_give_the_same_bytes(files: TokenFiles) -> None:
    made(files)
    whole = contents(files.directory)
    for path in files.directory.iterdir():
        path.unlink()
    make_token_files(files, part=1, parts=3)
    assert not finish_token_files(files)
    with pytest.raises(BadInput, match=r"not tokenised to its end.*tokenize_shards"):
        open_tokens(files)
    (files.directory / "tokens-00001.safetensors").write_bytes(b"half")  # a torn copy
    made(files, parts=2)
    assert contents(files.directory) == whole


def test_other_lengths_share_the_tokens_and_other_tokenizers_do_not(
    files: TokenFiles, inner: Tokenizer
) -> None:
    made(files)
    before = {p.name: p.stat().st_mtime_ns for p in files.directory.glob("tokens-*")}
    longer = TokenFiles(shards=files.shards, tokenizer=files.tokenizer, block_tokens=64)
    assert made(longer).num_blocks < open_tokens(files).num_blocks
    assert before == {p.name: p.stat().st_mtime_ns for p in files.directory.glob("tokens-*")}
    other = Tokenizer.from_str(inner.to_str())
    other.add_tokens(["Word7"])
    assert (
        TokenFiles(shards=files.shards, tokenizer=of(other), block_tokens=32).directory
        != files.directory
    )


@pytest.mark.parametrize("kind", ["tokens", "blocks-32"])
def test_a_file_that_changed_is_refused_when_it_is_read(files: TokenFiles, kind: str) -> None:
    made(files)
    path = files.directory / f"{kind}-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    opened = open_tokens(files)
    opened.block(0)  # of another file
    last = opened.num_blocks - 1
    with pytest.raises(BadInput, match=f"{kind}-00002.safetensors: is damaged"):
        opened.block(last)
    path.unlink()
    with pytest.raises(BadInput, match=f"{kind}-00002.safetensors: cannot be read"):
        open_tokens(files).block(last)


def test_arrays_are_views_of_the_smallest_type_and_any_reader_reads_them(files: TokenFiles) -> None:
    opened = made(files)
    view = opened.document(0, 2)
    assert view.dtype == np.uint16 and not view.flags.owndata and not view.flags.writeable
    plain = load_file(files.directory / "tokens-00000.safetensors")
    first, last = plain["document_offsets"][2:4]
    assert view.tolist() == plain["ids"][first:last].tolist()


@pytest.mark.parametrize("template", ["$A", "<s> $A", "<s> $A </s>"])
def test_crossing_blocks_are_those_of_the_reference(
    tmp_path: Path, files: TokenFiles, inner: Tokenizer, template: str
) -> None:
    """run_mntp.py: tokenise with special tokens, join all, cut into equal blocks."""
    other = Tokenizer.from_str(inner.to_str())
    specials = [("<s>", BOS), ("</s>", EOS)]
    other.post_processor = TemplateProcessing(single=template, special_tokens=specials)
    files = TokenFiles(shards=files.shards, tokenizer=of(other), block_tokens=32)
    opened = made(files)
    rows = open_shards(files.shards)
    expected: list[list[int]] = []
    for first in range(0, rows.num_rows, 5):  # shard by shard
        texts = [rows.text(row) for row in range(first, min(first + 5, rows.num_rows))]
        joined = list(itertools.chain(*(other.encode(text).ids for text in texts)))
        expected += [joined[start : start + 32] for start in range(0, len(joined), 32)]
    found = [opened.crossing_block(index) for index in range(opened.num_crossing_blocks)]
    assert all(len(block) == 1 for block in found)
    assert [block[0].tolist() for block in found] == expected
    crossing = Stream(Blocks(opened, crossing=True), seed=1)
    assert crossing.num_samples == len(expected)


def test_parts_of_a_huge_text_end_at_blanks(
    inner: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "PART_CHARS", 50)
    text = "A few words of prose. " * 30 + "漢" * 120
    marks = np.arange(0, 660, 22)
    ((ids, places),) = of(inner).tokenize([text], marks=[marks])
    assert inner.decode(ids.tolist()).replace(" ", "") == text.replace(" ", "")
    assert len(places) == 30
    assert {inner.decode(ids[place : place + 6].tolist()).split()[0] for place in places} == {"A"}


def test_ten_thousand_shards_open_without_being_read(files: TokenFiles) -> None:
    made(files)
    manifest = json.loads((files.directory / files.manifest).read_text())
    for kind in ("token_files", "block_files"):
        manifest[kind] = manifest[kind] * 3334
    manifest[SELF_DIGEST] = content_digest(manifest)
    files.__dict__["sources"] = files.sources * 3334
    (files.directory / files.manifest).write_text(json.dumps(manifest))
    before = len(os.listdir("/proc/self/fd"))
    opened = open_tokens(files)
    assert opened.num_blocks > 10_000
    last = opened.block(opened.num_blocks - 1)
    assert sum(map(len, last)) > 0
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_ids_beyond_the_number_of_tokens_are_kept(tmp_path: Path) -> None:
    """A vocabulary may have gaps: its largest id, not its size, decides how ids are stored."""
    sparse = Tokenizer(WordLevel({"<unk>": 0, "a": 70_000, "b": 3}, unk_token="<unk>"))
    sparse.pre_tokenizer = Whitespace()
    shards = shard_articles([Article("0", "", "", "a b a")], output=tmp_path / "s")
    opened = made(TokenFiles(shards=shards, tokenizer=of(sparse), block_tokens=32))
    assert opened.document(0, 0).tolist() == [70_000, 3, 70_000]


def read_all(files: TokenFiles) -> None:
    opened = open_tokens(files)
    for index in range(opened.num_blocks):
        opened.block(index)


def test_tokens_that_the_model_has_no_vector_of_are_refused_when_opened(
    files: TokenFiles, inner: Tokenizer
) -> None:
    """Before the first step."""
    made(files)
    largest = max(max(row, default=0) for row in whole_documents(files, inner))
    for num_embeddings in (largest + 1, largest):
        tokenizer = TextTokenizer(
            inner,
            special_ids=[BOS, EOS, PAD],
            pad_id=PAD,
            max_tokens=32,
            num_embeddings=num_embeddings,
        )
        again = dataclasses.replace(files, tokenizer=tokenizer)
        if num_embeddings > largest:
            assert open_tokens(again).num_blocks > 0
            continue
        with pytest.raises(BadInput, match=rf"tokens-0000.\.safetensors: holds .*id {largest}\)"):
            read_all(again)

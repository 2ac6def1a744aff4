"""Search by words, alone and fused with vectors: through the door, beside the formula, and what
becomes of an index that is damaged, of another encoding, or cannot be kept."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save
from scipy.stats import rankdata

from tests.benchmarks.real import bm25 as oracle
from tests.conftest import refused
from tests.encoding.conftest import embed
from tests.text.making import shard_articles
from toolkit import search, verify
from toolkit.base.errors import BadInput
from toolkit.encoding.encoder import encoder_of
from toolkit.encoding.index import build_index
from toolkit.encoding.search import nearest, nearest_rows
from toolkit.encoding.store import VectorStore
from toolkit.encoding.word_index import by_words, hybrid, word_index
from toolkit.text.records import Article
from toolkit.text.shards import open_shards

QUERIES = ["a bridge over a river", "the moons of jupiter", "a lion"]
FILE = Path("index") / "words.safetensors"


@pytest.fixture
def encoding(whole: Path, tmp_path: Path) -> Path:
    """The encyclopedia, embedded, to be written to."""
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def same_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "K1", 1.2)
    monkeypatch.setattr(oracle, "B", 0.75)


def asked(
    capsys: pytest.CaptureFixture[str], encoding: Path, *options: str, queries: list[str] = QUERIES
) -> list[list[dict[str, Any]]]:
    """The hits that the door prints for each query."""
    capsys.readouterr()
    assert search.main([str(encoding), *queries, "--json", *options]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["query"] for answer in answers] == queries
    return [answer["hits"] for answer in answers]


def ranks(scores: Sequence[float]) -> dict[int, float]:
    """From 1; equal scores share the mean of theirs."""
    return dict(enumerate(rankdata(-np.array(scores, np.float32)).tolist()))


@pytest.mark.usefixtures("same_constants")
def test_the_door_searches_by_words_and_fuses(
    encoding: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [record["text"] for record in open_shards(shards).records(0, 1000)]
    index = oracle.BM25(texts)
    store = VectorStore(encoding)
    queries_QD = encoder_of(store).vectors_of(QUERIES)
    cosines_QK, rows_QK = nearest_rows(store, queries_QD=queries_QD, top=len(texts))
    words_found = asked(capsys, encoding, "--bm25", "--top", "7")
    both_found = asked(capsys, encoding, "--hybrid", "--top", "7")
    for number, query in enumerate(QUERIES):
        scores = index.scores(query).tolist()
        by_word = {row: rank for row, rank in ranks(scores).items() if scores[row] > 0}
        expected = sorted(by_word, key=lambda row: (by_word[row], row))[:7]
        hits = words_found[number]
        assert [hit["row"] for hit in hits] == expected
        assert [hit["score"] for hit in hits] == pytest.approx([scores[row] for row in expected])
        assert all(hit["snippet"] for hit in hits)
        cosine = dict(zip(rows_QK[number].tolist(), cosines_QK[number].tolist(), strict=True))
        by_vector = ranks([cosine[row] for row in range(len(texts))])
        total = {row: 1 / (60 + rank) for row, rank in by_vector.items()}
        for row, rank in by_word.items():
            total[row] += 1 / (60 + rank)
        hits = both_found[number]
        best = sorted(total.values(), reverse=True)[:7]
        assert [hit["score"] for hit in hits] == pytest.approx(best)
        assert [total[hit["row"]] for hit in hits] == pytest.approx(best)
    # By an index of vectors that finds all rows, and one query at a time: the same.
    build_index(store, kind="flat")
    assert asked(capsys, encoding, "--hybrid", "--top", "7", "--index", "flat") == both_found
    alone = asked(capsys, encoding, "--hybrid", "--top", "7", queries=QUERIES[1:2])
    assert alone == both_found[1:2]


def test_it_is_made_once_and_kept(
    encoding: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = asked(capsys, encoding, "--bm25")
    content = (encoding / FILE).read_bytes()
    assert os.listdir(encoding / "index") == [FILE.name]
    assert verify.run(encoding) == 0
    # The corpus is away: the index has all that a search needs, but no snippets.
    manifest = VectorStore(encoding).manifest
    monkeypatch.setitem(manifest, "corpus_path", "nowhere")
    monkeypatch.setattr("toolkit.encoding.store._manifest", lambda _: manifest)
    again = asked(capsys, encoding, "--bm25")
    for hits, others in zip(again, first, strict=True):
        assert hits == [
            {key: value for key, value in hit.items() if key != "snippet"} for hit in others
        ]
    assert (encoding / FILE).read_bytes() == content
    # And without the index, the shards are asked for.
    (encoding / FILE).unlink()
    said = refused(capsys, search.main, encoding, "a lion", "--hybrid")
    assert "nowhere" in said
    assert not (encoding / FILE).exists()


def test_without_a_known_word_vectors_decide(
    encoding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = ["qwzx qqzzxx"]
    vectors = asked(capsys, encoding, queries=unknown)
    both = asked(capsys, encoding, "--hybrid", queries=unknown)
    assert [hit["row"] for hit in both[0]] == [hit["row"] for hit in vectors[0]]
    assert asked(capsys, encoding, "--bm25", queries=unknown) == [[]]
    assert search.main([str(encoding), "?!", "a lion", "--bm25"]) == 0
    assert "?!\n  no text has a word of it\na lion\n  1. " in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["flipped", "cut", "empty"])
def test_a_damaged_index_is_refused(
    harm: str, encoding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = asked(capsys, encoding, "--bm25")
    path = encoding / FILE
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes({"flipped": bytes(flipped), "cut": content[:-1], "empty": b""}[harm])
    for door, arguments in ((search.main, ["a lion", "--bm25"]), (verify.main, [])):
        said = refused(capsys, door, encoding, *arguments)
        assert f"{path}: is damaged; delete it, and it is made anew" in said
    path.unlink()
    assert asked(capsys, encoding, "--bm25") == expected
    assert path.read_bytes() == content


@given(place=st.integers(0, 10**9), value=st.integers(0, 255))
def test_no_changed_byte_is_used(
    place: int, value: int, kept: tuple[VectorStore, bytes, Path]
) -> None:
    store, content, path = kept
    changed = bytearray(content)
    changed[place % len(content)] = value
    path.write_bytes(bytes(changed))
    if bytes(changed) == content:
        assert word_index(store).num_texts == store.num_rows
    else:
        with pytest.raises(BadInput, match="is damaged"):
            word_index(store)


@pytest.fixture(scope="module")
def kept(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[VectorStore, bytes, Path]:
    folder = tmp_path_factory.mktemp("kept") / "copy"
    shutil.copytree(whole, folder)
    store = VectorStore(folder)
    word_index(store)
    return store, (folder / FILE).read_bytes(), folder / FILE


def test_arrays_that_do_not_fit_are_refused(kept: tuple[VectorStore, bytes, Path]) -> None:
    """Whoever forges the digest, too."""
    from toolkit.encoding.word_index import _digest

    store, content, path = kept
    for name in ("indices", "indptr", "words", "data", "num_texts", "facts"):
        arrays = load(content)
        del arrays["sha256"]
        arrays[name] = np.concatenate([arrays[name][:-1], arrays[name][:0]])
        path.write_bytes(save({**arrays, "sha256": _digest(arrays)}))
        with pytest.raises(BadInput, match="is damaged"):
            word_index(store)
    path.write_bytes(content)


def test_the_index_of_another_encoding_is_made_anew(
    encoding: Path, inputs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(capsys, encoding, "--bm25")
    articles = [Article(id="1", title="One", url="", text="A lion sleeps. Another lion wakes.")]
    other = shard_articles(articles, output=tmp_path / "shards")
    embed(tmp_path / "other", inputs[0], f"corpus.input={other}")
    (tmp_path / "other" / "index").mkdir()
    shutil.copy(encoding / FILE, tmp_path / "other" / FILE)
    hits = asked(capsys, tmp_path / "other", "--hybrid")
    assert [[hit["id"] for hit in found] for found in hits] == [["1"]] * 3
    assert (tmp_path / "other" / FILE).read_bytes() != (encoding / FILE).read_bytes()


def test_an_index_that_cannot_be_kept_is_used(
    encoding: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of somebody else; root, who runs the tests, may write everywhere."""

    def forbidden(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("toolkit.encoding.word_index.write_atomic", forbidden)
        found = asked(capsys, encoding, "--bm25")
    assert not (encoding / FILE).exists()
    assert found == asked(capsys, encoding, "--bm25")


def test_chunks_and_any_script(
    inputs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a long text the chunk that has the words; a document counts once, unless asked."""
    filler = "The river flows to the sea and the boats go north. "
    texts = {
        "long": filler * 6 + "A zebra drinks. " + filler * 6 + "The zebra sleeps. " + filler * 3,
        "chinese": "运河把两条河流连接起来，船只可以从北方航行到南方。" * 4,
        "hindi": "भाषा। नदी समुद्र की ओर बहती है।",
        "blank": "\u2800",
    }
    articles = [Article(id=name, title=name, url="", text=text) for name, text in texts.items()]
    shards = shard_articles(articles, output=tmp_path / "shards")
    chunks = ("encoder.max_tokens=64", "corpus.chunk_tokens=64", "corpus.chunk_overlap=16")
    embed(tmp_path / "out", inputs[0], f"corpus.input={shards}", *chunks)
    queries = ["zebra", "河流", "भाषा"]
    words, both = (
        asked(capsys, tmp_path / "out", option, queries=queries)
        for option in ("--bm25", "--hybrid")
    )
    for found in (words, both):
        assert [hits[0]["id"] for hits in found] == ["long", "chinese", "hindi"]
        assert all(len({hit["id"] for hit in hits}) == len(hits) for hits in found)
    hit = words[0][0]
    assert "zebra" in texts["long"][hit["begin"] : hit["end"]]
    every = asked(capsys, tmp_path / "out", "--bm25", "--every-chunk", queries=queries)
    pieces = [texts["long"][one["begin"] : one["end"]] for one in every[0]]
    assert len(pieces) >= 2
    assert all("zebra" in piece for piece in pieces)


def test_from_python(encoding: Path) -> None:
    """As the README shows it."""
    store = VectorStore(encoding)
    words, queries_QD = word_index(store), encoder_of(store).vectors_of(QUERIES)
    both = hybrid(store, words, queries=QUERIES)
    hits = nearest(store, queries_QD=queries_QD, top=500, find=both)
    assert [len(found) for found in hits] == [store.num_rows] * 3
    some = nearest(store, queries_QD=queries_QD, top=3, find=by_words(words, QUERIES))
    assert [len(found) for found in some] == [3] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a", "--bm25", "--hybrid"], "--bm25 and --hybrid: --bm25 searches by words alone"),
        (["a", "--bm25", "--index", "flat"], "--bm25 and --index: --bm25 searches by words alone"),
        (["a", "--bm25", "--prompt", "query"], "--bm25 and --prompt: "),
        (["--build-index", "flat", "--hybrid"], "--build-index and --hybrid: --build-index is for"),
        (["--build-index", "flat", "--bm25"], "--build-index and --bm25: --build-index is for"),
        (["a", "--hybrid", "--index", "flat"], "has no index of kind flat"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], message: str, encoding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, search.main, encoding, *options)
    assert not (encoding / "index").exists()


def test_another_corpus_is_refused(
    encoding: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    articles = [Article(id="1", title="One", url="", text="A lion sleeps.")]
    other = shard_articles(articles, output=tmp_path / "shards")
    options = [encoding, "a lion", "--hybrid", "--corpus", other]
    said = refused(capsys, search.main, *options)
    assert "not of this corpus; give --corpus its shards" in said
    assert not (encoding / "index").exists()

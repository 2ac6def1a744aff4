"""Nearest rows against brute force, and the door that searches."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.conftest import refused
from tests.encoding.conftest import embed
from tests.encoding.making import output_of, write_all
from tests.text.making import shard_articles
from toolkit import search
from toolkit.base.errors import BadInput
from toolkit.base.sealed import SELF_DIGEST, content_digest
from toolkit.encoding.formats import unit_length
from toolkit.encoding.index import Index, build_index
from toolkit.encoding.search import Find, Hit, cosines, exact, nearest, nearest_rows
from toolkit.encoding.snippets import snippet_of
from toolkit.encoding.store import VectorStore
from toolkit.text.records import Article
from toolkit.text.shards import open_shards

# Cosines among these are exactly -1, 0 or 1: ties, whatever order the sums are done in.
EXACT = [(2.0, 0.0), (-4.0, 0.0), (0.0, 1.0), (0.0, -0.5), (0.0, 0.0), (0.5, 0.0)]


def store_of(directory: Path, vectors_ND: NDArray[np.float32], *, unit_rows: int) -> VectorStore:
    write_all(output_of(directory, rows=len(vectors_ND), unit_rows=unit_rows), vectors_ND)
    return VectorStore(directory)


def brute_force(
    vectors_ND: NDArray[np.float32], *, queries_QD: NDArray[np.float32], top: int
) -> list[list[tuple[str, float]]]:
    """Python's own sort over each cosine in fp64; ties by row."""
    found = []
    for query in queries_QD.astype(np.float64):
        norms = np.linalg.norm(vectors_ND.astype(np.float64), axis=1) * np.linalg.norm(query)
        cosines = (vectors_ND.astype(np.float64) @ query) / np.maximum(norms, 1e-12)
        order = sorted(range(len(vectors_ND)), key=lambda row, c=cosines: (-c[row], row))
        found.append([(f"id{row}", float(cosines[row])) for row in order[:top]])
    return found


def agree(hits: list[list[Hit]], expected: list[list[tuple[str, float]]]) -> None:
    assert [[hit.id for hit in row] for row in hits] == [[i for i, _ in row] for row in expected]
    for row, wanted in zip(hits, expected, strict=True):
        assert [hit.score for hit in row] == pytest.approx([s for _, s in wanted], abs=1e-6)
        assert all(hit.title == f"T{hit.id[2:]}" for hit in row)


@settings(deadline=None, max_examples=30)
@given(
    rows=st.lists(st.sampled_from(EXACT), min_size=1, max_size=25),
    queries=st.lists(st.sampled_from(EXACT), min_size=1, max_size=3),
    unit_rows=st.integers(1, 9),
    top=st.integers(1, 30),
)
def test_ties_come_in_corpus_order(
    rows: list[tuple[float, float]],
    queries: list[tuple[float, float]],
    unit_rows: int,
    top: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    vectors, queries_QD = np.array(rows, dtype=np.float32), np.array(queries, dtype=np.float32)
    found = store_of(tmp_path_factory.mktemp("store"), vectors, unit_rows=unit_rows)
    hits = nearest(found, queries_QD=queries_QD, top=top)
    assert [len(row) for row in hits] == [min(top, len(rows))] * len(queries)
    agree(hits, brute_force(vectors, queries_QD=queries_QD, top=top))


@pytest.mark.parametrize(("unit_rows", "top"), [(7, 5), (1000, 1), (64, 500)])
def test_hits_among_random_vectors_are_those_of_the_whole_matrix(
    unit_rows: int, top: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 16)).astype(np.float32)
    queries = rng.standard_normal((4, 16)).astype(np.float32)
    found = store_of(tmp_path, vectors, unit_rows=unit_rows)
    hits = nearest(found, queries_QD=queries, top=top)
    agree(hits, brute_force(vectors, queries_QD=queries, top=top))


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.sampled_from([3, 64, 127, 768]),
    rows=st.integers(1, 120),
    unit_rows=st.integers(1, 120),
    top=st.integers(1, 130),
    different=st.integers(1, 5),
)
def test_a_score_depends_on_the_two_vectors_alone(
    seed: int,
    width: int,
    rows: int,
    unit_rows: int,
    top: int,
    different: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Equal vectors have equal scores wherever they stand, in a batch of queries and alone."""
    rng = np.random.default_rng(seed)
    some = rng.standard_normal((different, width)).astype(np.float32)
    vectors = some[rng.integers(0, different, rows)]
    queries = rng.standard_normal((3, width)).astype(np.float32)
    store = store_of(tmp_path_factory.mktemp("store"), vectors, unit_rows=unit_rows)
    scores_QK, rows_QK = nearest_rows(store, queries_QD=queries, top=top)
    for query, scores, found in zip(queries, scores_QK, rows_QK, strict=True):
        alone_scores, alone = nearest_rows(store, queries_QD=query[None], top=top)
        np.testing.assert_array_equal(alone[0], found)
        np.testing.assert_array_equal(alone_scores[0], scores)
        score_N = cosines(query, vectors)
        for one in some:
            assert len(set(score_N[(vectors == one).all(axis=1)].tolist())) <= 1
        np.testing.assert_array_equal(found, np.argsort(-score_N, kind="stable")[:top])
    build_index(store, kind="flat")
    by_index = Index(store, kind="flat").nearest_rows(queries, rows)
    np.testing.assert_array_equal(by_index[1][:, :top], rows_QK)
    np.testing.assert_array_equal(by_index[0][:, :top], scores_QK)


def test_all_rows_equal_costs_no_more_than_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = np.tile(np.random.default_rng(1).standard_normal(48), (3000, 1)).astype(np.float32)
    store = store_of(tmp_path, vectors, unit_rows=1000)
    seen: list[int] = []

    def counted(left: Any, right: Any) -> Any:
        seen.append(len(right))
        return cosines(left, right)

    monkeypatch.setattr("toolkit.encoding.search.cosines", counted)
    queries = np.random.default_rng(2).standard_normal((2, 48)).astype(np.float32)
    _, rows_QK = nearest_rows(store, queries_QD=queries, top=7)
    assert rows_QK.tolist() == [list(range(7))] * 2
    assert seen == [1] * 6


@pytest.mark.parametrize("scale", [1e20, 3e37, 1e-25, 1e-37])
def test_the_scale_of_vectors_changes_no_cosine(scale: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, 16)).astype(np.float32)
    vectors[7] = 0
    queries = rng.standard_normal((4, 16)).astype(np.float32)
    expected = brute_force(vectors, queries_QD=queries, top=9)
    for number, rows in enumerate((slice(None), slice(3, 40, 5))):
        scaled, size = vectors.copy(), np.float32(scale)
        scaled[rows] *= size
        store = store_of(tmp_path / str(number), scaled, unit_rows=20)
        for asked in (queries, queries * size):
            agree(nearest(store, queries_QD=asked, top=9), expected)
    np.testing.assert_allclose(unit_length(vectors * size), unit_length(vectors), atol=1e-6)


@pytest.mark.parametrize("top", [0, -1, True, 1.5, np.nan, None])
@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_no_hits_cannot_be_asked_for(kind: str, top: Any, tmp_path: Path) -> None:
    store = store_of(tmp_path, np.eye(4, dtype=np.float32), unit_rows=2)
    with pytest.raises(BadInput, match=r"top=.*: ask for at least one hit"):
        finder(store, kind=kind)(np.eye(4, dtype=np.float32), top)
    with pytest.raises(BadInput, match=r"top=.*: ask for at least one hit"):
        nearest(store, queries_QD=np.eye(4, dtype=np.float32), top=top)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_a_query_that_is_not_finite_is_named(kind: str, value: float, tmp_path: Path) -> None:
    store = store_of(tmp_path, np.eye(4, dtype=np.float32), unit_rows=2)
    queries = np.ones((3, 4), dtype=np.float32)
    queries[1, 2] = value
    with pytest.raises(BadInput, match="query 1: its vector is not finite"):
        finder(store, kind=kind)(queries, 2)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 4, 1), (0, 3)])
@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_queries_of_another_width_are_refused(
    kind: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    store = store_of(tmp_path, np.eye(4, dtype=np.float32), unit_rows=2)
    with pytest.raises(BadInput, match=r"queries of \(.*: give some of 4 numbers each"):
        finder(store, kind=kind)(np.ones(shape, dtype=np.float32), 2)


def finder(store: VectorStore, *, kind: str) -> Find:
    if kind == "exact":
        return exact(store)
    pytest.importorskip("faiss")
    build_index(store, kind=kind)
    return Index(store, kind=kind).nearest_rows


def test_unit_length_of_numbers_whose_squares_are_too_large() -> None:
    found = unit_length(np.array([[3e30, 4e30], [3, 4]], dtype=np.float32))
    np.testing.assert_allclose(found, [[0.6, 0.8]] * 2, rtol=1e-6)


def test_unit_length_keeps_the_zero_vector() -> None:
    found = unit_length(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


def test_the_door_finds_the_article(
    whole: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A text of the corpus, asked for, is its own nearest row."""
    article = open_shards(shards).record(42)
    assert search.main([str(whole), article["text"], "a bridge", "--top", "3"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == article["text"].replace("\n", "\\n")  # one line a query, whatever is in it
    assert lines[0] == f"  1. 1.000  {article['title']}  ({article['id']})"
    assert lines[1].strip() == snippet_of(article["text"])
    hits = ["  1. ", "     ", "  2. ", "     ", "  3. ", "     "]
    assert [line[:5] for line in lines] == [*hits, "a bri", *hits]


def test_a_snippet_is_a_short_line_cut_at_a_blank() -> None:
    assert snippet_of(" one\n two\t three ") == "one two three"
    assert snippet_of("") == ""
    long = "word " * 100
    assert snippet_of(long, chars=12) == "word word…"
    assert snippet_of("四" * 100, chars=12) == "四" * 11 + "…"
    assert snippet_of("x" * 12, chars=12) == "x" * 12


def test_without_its_corpus_hits_have_no_snippet_and_that_is_said_once(
    whole: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    for name in ("plan.json", "manifest.json"):
        path = tmp_path / "copy" / name
        content = {**json.loads(path.read_text()), "corpus_path": str(tmp_path / "gone")}
        path.write_text(json.dumps({**content, SELF_DIGEST: content_digest(content)}))
    asked = [str(tmp_path / "copy"), "a bridge", "a dam", "--top", "2", "--json"]
    assert search.main(asked) == 0
    captured = capsys.readouterr()
    assert captured.err.count("no snippets: ") == captured.err.count("\n") == 1
    assert "gone: no such directory" in captured.err
    bare = [json.loads(line) for line in captured.out.splitlines()]
    assert set(bare[0]["hits"][0]) == {"id", "title", "score", "row"}
    half = tmp_path / "half"
    shard_articles(
        [Article(**record) for record in open_shards(shards).records(0, 85)], output=half
    )
    assert search.main([*asked, "--corpus", str(half)]) == 0
    assert "not of this corpus; give --corpus its shards" in capsys.readouterr().err
    assert search.main([*asked, "--corpus", str(shards)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found = [json.loads(line) for line in captured.out.splitlines()]
    for with_text, without in zip(found, bare, strict=True):
        for hit, plain in zip(with_text["hits"], without["hits"], strict=True):
            assert hit == {**plain, "snippet": snippet_of(open_shards(shards).text(hit["row"]))}


def test_queries_from_a_file(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a dam\r\n\nLö\u2028we\n"
    (tmp_path / "queries.txt").write_text(text, encoding="utf-8-sig")
    asked = ["--queries", str(tmp_path / "queries.txt"), "--json"]
    assert search.main([str(whole), *asked, "a bridge"]) == 0  # behind an option
    answers = [json.loads(line)["query"] for line in capsys.readouterr().out.splitlines()]
    assert answers == ["a bridge", "a dam", "Lö\u2028we"]
    assert "the query ' ' is blank" in refused(capsys, search.main, whole, " ")
    assert "is not valid Unicode" in refused(capsys, search.main, whole, "caf\udce9")
    (tmp_path / "queries.txt").write_text("\n \n")
    assert "has no line; write one query per line" in refused(capsys, search.main, whole, *asked)
    (tmp_path / "queries.txt").write_bytes(b"\xff\xfe")
    assert "cannot be read as UTF-8 text" in refused(capsys, search.main, whole, *asked)
    assert "give queries" in refused(capsys, search.main, whole)
    assert "give queries" in refused(capsys, search.main, whole, "x", "--build-index", "flat")


def test_the_door_prints_json(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search.main([str(whole), "a bridge", "Löwe", "--top", "200", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["query"] for answer in answers] == ["a bridge", "Löwe"]
    for answer in answers:
        scores = [hit["score"] for hit in answer["hits"]]
        assert scores == sorted(scores, reverse=True)
        assert len({hit["id"] for hit in answer["hits"]}) == 170
        assert set(answer["hits"][0]) == {"id", "title", "score", "row", "snippet"}


def test_what_cannot_be_searched_is_named(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--top 0: ask for at least one hit" in refused(
        capsys, search.main, whole, "x", "--top", "0"
    )
    assert "is not an encoding" in refused(capsys, search.main, tmp_path, "x")
    shutil.copytree(whole, tmp_path / "copy")
    path = tmp_path / "copy" / "units" / "00002.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    assert "00002.safetensors: is missing or damaged" in refused(
        capsys, search.main, path.parents[1], "x"
    )
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # one bit of the last vector
    said = refused(capsys, search.main, path.parents[1], "x", "--verify")
    assert "00002.safetensors: is missing or damaged" in said
    (tmp_path / "copy" / "manifest.json").unlink()
    assert "is not finished: run the same toolkit.encode" in refused(
        capsys, search.main, path.parents[1], "x"
    )


def test_a_moved_model_is_asked_for(
    tiny_model: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, other = (tmp_path / name for name in ("old", "new", "other"))
    shutil.copytree(tiny_model, old)
    shutil.copytree(tiny_model, other)
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace("10000.0", "20000.0"))
    output = tmp_path / "encoding"
    embed(output, f"encoder.model={old}", f"corpus.input={shards}")
    capsys.readouterr()
    old.rename(new)
    assert "give --model its folder" in refused(capsys, search.main, output, "x")
    message = refused(capsys, search.main, output, "x", "--model", other)
    assert f"was not made by the model in {other}; give --model its folder" in message
    assert search.main([str(output), "x", "--model", str(new)]) == 0

"""Indexes by faiss: recall beside the exact search, kills, and what is refused."""

import json
import os
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import run
from tests.encoding.conftest import flip_a_byte
from tests.encoding.making import output_of, write_all
from toolkit import search, verify
from toolkit.base.errors import BadInput, RunFailed
from toolkit.base.layout import INDEX_DIR
from toolkit.encoding import index as indexing
from toolkit.encoding.encoder import Encoder
from toolkit.encoding.index import KINDS, Index, build_index, parameters_of
from toolkit.encoding.search import nearest, nearest_rows
from toolkit.encoding.store import VectorStore

ROWS, WIDTH, UNIT_ROWS = 1500, 32, 100
QUERIES = 40


def clustered(rows: int, *, seed: int) -> NDArray[np.float32]:
    """Vectors about centres, as those of texts are."""
    centres = np.random.default_rng(7).standard_normal((30, WIDTH))
    rng = np.random.default_rng(seed)
    found = centres[rng.integers(30, size=rows)] + 0.7 * rng.standard_normal((rows, WIDTH))
    return found.astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoding without an index. Not to be written to."""
    folder = tmp_path_factory.mktemp("index") / "encoding"
    write_all(output_of(folder, rows=ROWS, unit_rows=UNIT_ROWS), clustered(ROWS, seed=1))
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> VectorStore:
    shutil.copytree(made, tmp_path / "encoding")
    return VectorStore(tmp_path / "encoding")


def recall(store: VectorStore, *, kind: str, queries_QD: NDArray[np.float32]) -> float:
    """Of the ten nearest rows the part that the index finds."""
    _, wanted_QK = nearest_rows(store, queries_QD=queries_QD, top=10)
    _, found_QK = Index(store, kind=kind).nearest_rows(queries_QD, 10)
    pairs = zip(found_QK, wanted_QK, strict=True)
    return float(np.mean([len(np.intersect1d(found, wanted)) / 10 for found, wanted in pairs]))


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_finds_are_the_nearest_with_their_own_cosines(
    kind: str, store: VectorStore
) -> None:
    queries_QD = clustered(QUERIES, seed=2)
    build_index(store, kind=kind)
    assert recall(store, kind=kind, queries_QD=queries_QD) >= {"flat": 1.0}.get(kind, 0.95)
    hits = nearest(store, queries_QD=queries_QD, top=10, find=Index(store, kind=kind).nearest_rows)
    exact = nearest(store, queries_QD=queries_QD, top=ROWS)
    for few, everything in zip(hits, exact, strict=True):
        score_of = {hit.row: hit.score for hit in everything}
        assert [hit.score for hit in few] == pytest.approx([score_of[hit.row] for hit in few])
        assert [hit.score for hit in few] == sorted((hit.score for hit in few), reverse=True)
        assert all(hit.id == f"id{hit.row}" for hit in few)


def test_more_hits_than_an_index_finds_are_what_it_finds(store: VectorStore) -> None:
    build_index(store, kind="ivf")
    index = Index(store, kind="ivf")
    index._index.nprobe = 1
    hits = nearest(store, queries_QD=clustered(1, seed=3), top=ROWS, find=index.nearest_rows)
    assert 0 < len(hits[0]) < ROWS
    assert len({hit.row for hit in hits[0]}) == len(hits[0])


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moment", ["adding", "before the name", "after the name"])
def test_a_killed_build_goes_on(
    kind: str, moment: str, store: VectorStore, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved after every unit, killed at the sixth: it goes on with what was named."""
    real, added = indexing.write_json, []

    def on_rows(rows: int) -> None:
        added.append(rows)
        if moment == "adding" and sum(added) == 6 * UNIT_ROWS:
            raise Killed

    def write_json(path: Path, content: dict[str, object]) -> None:
        if moment == "before the name" and content["rows"] == 6 * UNIT_ROWS:
            raise Killed
        real(path, content)
        if moment == "after the name" and content["rows"] == 6 * UNIT_ROWS:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "write_json", write_json)
        with pytest.raises(Killed):
            build_index(store, kind=kind, save_every_s=0, on_rows=on_rows)
    # What is missing is searched exactly.
    index = Index(store, kind=kind)
    assert index.num_missing in (900, 1000)
    queries_QD = clustered(QUERIES, seed=2)
    assert recall(store, kind=kind, queries_QD=queries_QD) >= {"flat": 1.0}.get(kind, 0.95)
    scores_QK, rows_QK = index.nearest_rows(queries_QD, 10)
    wanted_QK, exact_QK = nearest_rows(store, queries_QD=queries_QD, top=10)
    for scores, rows, wanted, exact in zip(scores_QK, rows_QK, wanted_QK, exact_QK, strict=True):
        late = exact[exact >= ROWS - index.num_missing]
        assert set(late) <= set(rows) and len(set(rows)) == 10
        score_of = dict(zip(exact, wanted, strict=True))
        assert all(
            score_of.get(row, score) == score for row, score in zip(rows, scores, strict=True)
        )
        assert sorted(scores, reverse=True) == scores.tolist()
    few_Q, _ = index.nearest_rows(queries_QD, ROWS)
    assert few_Q.shape == (QUERIES, ROWS)
    added.clear()
    build_index(store, kind=kind, on_rows=added.append)
    assert added[0] == (6 if moment == "after the name" else 5) * UNIT_ROWS
    assert sum(added) == ROWS
    folder = store.directory / INDEX_DIR
    assert len(list(folder.iterdir())) == 2, "the JSON and the one file that it names"
    assert recall(store, kind=kind, queries_QD=clustered(QUERIES, seed=2)) >= 0.95
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    build_index(store, kind=kind)
    assert times == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_what_somebody_else_is_writing_stays(store: VectorStore) -> None:
    """Another builder of the same kind; what a killed one has left long ago goes."""
    folder = store.directory / INDEX_DIR
    folder.mkdir()
    here = socket.gethostname()
    stay = [f".flat.faiss.{here}.{os.getppid()}.tmp", ".flat.faiss.other.7.tmp"]
    go = [
        f".flat.faiss.{here}.99999999.tmp",
        ".flat.faiss.other.8.tmp",
        "flat-0123456789abcdef.faiss",
    ]
    for name in (*stay, *go):
        (folder / name).touch()
    os.utime(folder / go[1], (0, 0))
    build_index(store, kind="flat")
    assert all((folder / name).exists() for name in stay)
    assert not any((folder / name).exists() for name in go)
    assert len(list(folder.glob("flat-*.faiss"))) == 1


def test_an_index_that_another_builder_removes_before_it_is_named_is_written_again(
    store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two build the same kind: one tidies up between the other's file and its name."""
    real, removed = indexing.write_json, list[Path]()

    def after_the_other(path: Path, content: dict[str, object]) -> None:
        if not removed:
            removed.append(path.with_name(str(content["file"])))
            removed[0].unlink()
        real(path, content)

    monkeypatch.setattr(indexing, "write_json", after_the_other)
    record = build_index(store, kind="flat")
    assert [store.directory / INDEX_DIR / record.file] == removed
    Index(store, kind="flat")


@pytest.mark.parametrize("harm", ["flipped", "cut", "missing", "no record", "record cut"])
def test_a_damaged_index_is_made_anew(
    harm: str, store: VectorStore, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store.directory / INDEX_DIR
    build_index(store, kind="flat")
    assert verify.run(store.directory) == 0
    (path,) = folder.glob("flat-*.faiss")
    if harm == "flipped":
        flip_a_byte(path)
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "missing":
        path.unlink()
    else:
        (folder / "flat.json").write_text("{}" if harm == "no record" else "{")
    capsys.readouterr()
    assert verify.run(store.directory) == 2
    named = "flat.json" if "record" in harm else path.name
    assert f"{named}: is" in capsys.readouterr().err
    if harm != "flipped":  # which only who reads every byte can see
        with pytest.raises(BadInput, match=r"anew|delete it|is not valid JSON"):
            Index(store, kind="flat")
    build_index(store, kind="flat")
    assert verify.run(store.directory) == 0
    assert recall(store, kind="flat", queries_QD=clustered(5, seed=2)) == 1.0


def test_an_index_of_other_embeddings_is_refused_and_made_anew(
    store: VectorStore, tmp_path: Path
) -> None:
    build_index(store, kind="hnsw")
    output = output_of(tmp_path / "other", rows=ROWS, unit_rows=UNIT_ROWS)
    write_all(output, clustered(ROWS, seed=9))
    shutil.copytree(store.directory / INDEX_DIR, tmp_path / "other" / INDEX_DIR)
    other = VectorStore(tmp_path / "other")
    with pytest.raises(BadInput, match=r"was built from another encoding; build it with python"):
        Index(other, kind="hnsw")
    assert verify.run(other.directory) == 2
    build_index(other, kind="hnsw")
    assert recall(other, kind="hnsw", queries_QD=clustered(QUERIES, seed=2)) >= 0.95
    with pytest.raises(BadInput, match=r"has no index of kind pq; build it .*--build-index pq"):
        Index(other, kind="pq")


def test_a_disk_that_is_full_costs_what_was_not_saved(
    store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full takes nothing: what faiss says of it is passed on, and nothing is left behind."""

    def full(path: Path) -> Path:
        path = path.with_suffix(".tmp")
        path.symlink_to("/dev/full")
        return path

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "temporary_of", full)
        with pytest.raises(RunFailed, match=r"flat\.tmp: cannot be written .*No space left"):
            build_index(store, kind="flat")
    assert list((store.directory / INDEX_DIR).iterdir()) == []
    build_index(store, kind="flat")


def test_the_door_says_what_an_index_lacks(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after its first unit: the hits are those of the exact search, and no row is lost."""
    folder = shutil.copytree(whole, tmp_path / "copy")
    store, added = VectorStore(folder), list[int]()

    def on_rows(rows: int) -> None:
        added.append(rows)
        if len(added) == 3:  # of what was there, and of two units, the first of them saved
            raise Killed

    with pytest.raises(Killed):
        build_index(store, kind="hnsw", save_every_s=0, on_rows=on_rows)
    asked = [str(folder), "a bridge over a river", "a lion", "--json"]
    assert search.main([*asked, "--index", "hnsw"]) == 0
    found = capsys.readouterr()
    missing = store.num_rows - store.units[0].stop
    assert f"index hnsw lacks {missing} of 170 rows, which are searched exactly; --b" in found.err
    assert search.main(asked) == 0
    for one, other in zip(
        found.out.splitlines(), capsys.readouterr().out.splitlines(), strict=True
    ):
        assert [hit["id"] for hit in json.loads(one)["hits"]] == [
            hit["id"] for hit in json.loads(other)["hits"]
        ]
    assert verify.run(folder) == 0  # an unfinished index is no fault


def test_without_faiss_it_is_asked_for(store: VectorStore) -> None:
    code = "import sys; sys.modules['faiss'] = None; from toolkit import search; "
    code += f"sys.exit(search.main([{str(store.directory)!r}, '--build-index', 'flat']))"
    printed = run([sys.executable, "-c", code], code=2)
    assert "an index needs faiss: pip install faiss-cpu" in printed


def test_parameters_fit_the_size() -> None:
    assert parameters_of("ivf", num_rows=0, width=8) == {"lists": 1, "probes": 1}
    assert parameters_of("ivf", num_rows=10**8, width=8) == {"lists": 40_000, "probes": 1266}
    assert parameters_of("pq", num_rows=10, width=7) == {"parts": 1, "bits": 1}
    assert parameters_of("pq", num_rows=10**6, width=100) == {"parts": 25, "bits": 8}


def test_the_door_builds_and_searches(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 170 articles, an index finds what the exact search finds."""
    shutil.copytree(whole, tmp_path / "copy")
    asked = [str(tmp_path / "copy"), "a bridge over a river", "a lion", "--json"]
    assert search.main(asked) == 0
    exact = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert search.main([*asked[:1], "--build-index", "hnsw"]) == 0
    assert "index hnsw (links 32, ef_construction 200, ef_search 128)" in capsys.readouterr().out
    assert search.main([*asked, "--index", "hnsw"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for one, other in zip(found, exact, strict=True):
        assert [hit["id"] for hit in one["hits"]] == [hit["id"] for hit in other["hits"]]


@pytest.mark.parametrize("count", [1000, pytest.param(5000, marks=pytest.mark.slow)])
def test_recall_on_real_texts(
    count: int, real_data: Path, shipped_model: Path, tmp_path: Path
) -> None:
    """Sentences of WikiSplit searched by 200 others; with 5,000, what the README states."""
    lines = (real_data / "wikisplit" / "test.tsv").read_text(encoding="utf-8").splitlines()
    sentences = [line.split("\t")[0] for line in lines[:count]]
    encoder = Encoder.from_pretrained(str(shipped_model), max_tokens=16)
    vectors_ND = encoder.encode(sentences)
    corpus_ND, queries_QD = vectors_ND[:-200], vectors_ND[-200:]
    write_all(output_of(tmp_path, rows=len(corpus_ND), unit_rows=1024), corpus_ND)
    store = VectorStore(tmp_path)
    found = {}
    for kind in KINDS:
        build_index(store, kind=kind)
        found[kind] = recall(store, kind=kind, queries_QD=queries_QD)
    print(len(corpus_ND), found)
    assert found["flat"] == 1.0
    assert all(found[kind] >= 0.97 for kind in KINDS), found

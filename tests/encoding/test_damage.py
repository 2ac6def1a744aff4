"""Damaged encodings: whatever is read is what was written, or is refused by name, by default."""

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.encoding.making import output_of, write_all
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, sha256_of, write_json
from toolkit.base.sealed import SELF_DIGEST, content_digest
from toolkit.encoding import sums
from toolkit.encoding.formats import VECTORS
from toolkit.encoding.index import Index, build_index
from toolkit.encoding.parquet import write_parquet
from toolkit.encoding.search import nearest
from toolkit.encoding.store import VectorStore
from toolkit.settings.schema import VectorFormat

FORMATS: tuple[VectorFormat, ...] = get_args(VectorFormat)
ROWS, WIDTH, UNIT_ROWS = 300, 160, 100
DAMAGED = "is missing or damaged"


def some_vectors() -> NDArray[np.float32]:
    found = np.random.default_rng(7).standard_normal((ROWS, WIDTH)).astype(np.float32)
    found[5] = 0  # a text without tokens
    return found


def encoding(folder: Path, *, form: VectorFormat = "fp32") -> Path:
    write_all(output_of(folder, rows=ROWS, unit_rows=UNIT_ROWS, form=form), some_vectors())
    return folder


def as_of_old(folder: Path) -> None:
    """Make it what an older toolkit has written: without checksums, and with plain markers."""
    manifest = read_json(folder / "manifest.json")
    for name, marker in manifest["units"].items():
        path = folder / "units" / f"{name}.safetensors"
        save_file({VECTORS: load_file(path)[VECTORS].copy()}, path)
        marker["sha256"][path.name] = sha256_of(path)
        del marker["blocks"], marker["marker_sha256"]
        write_json(folder / "units" / f"{name}.json", marker)
    write_json(folder / "manifest.json", {**manifest, SELF_DIGEST: content_digest(manifest)})


def flip(path: Path, *, bits: list[int]) -> None:
    data = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data.tobytes())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {form: encoding(tmp_path_factory.mktemp(form), form=form) for form in FORMATS}


READERS: dict[str, Callable[[Path, Path], Any]] = {
    "rows": lambda enc, _: VectorStore(enc).read([130, 7]),
    "a slice": lambda enc, _: VectorStore(enc).read(slice(None, None, 2)),
    "a tensor": lambda enc, _: VectorStore(enc).tensor(slice(120, 140)),
    "all": lambda enc, _: VectorStore(enc).vectors(),
    "a table": lambda enc, _: VectorStore(enc).table([130]),
    "a data set": lambda enc, _: VectorStore(enc).dataset(),
    "search": lambda enc, _: nearest(VectorStore(enc), queries_QD=some_vectors()[:2], top=1),
    "an index": lambda enc, _: build_index(VectorStore(enc), kind="flat"),
    "Parquet": lambda enc, tmp: write_parquet(enc, out=tmp / "all.parquet"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("old", [False, True], ids=["now", "of old"])
def test_a_bit_in_each_number_of_a_row_is_found_by_every_reader(
    reader: str, old: bool, tmp_path: Path
) -> None:
    folder = encoding(tmp_path / "enc")
    if old:
        as_of_old(folder)
    READERS[reader](folder, tmp_path / "before")
    for made in folder.glob("index/*"):
        made.unlink()
    path = folder / "units" / "00001.safetensors"
    start = path.read_bytes().index(some_vectors()[130].tobytes())
    flip(path, bits=[8 * (start + 4 * n) + 22 for n in range(128)])
    with pytest.raises(BadInput, match=rf"00001\.safetensors: {DAMAGED}"):
        READERS[reader](folder, tmp_path)
    assert len(VectorStore(folder).read(slice(0, UNIT_ROWS))) == UNIT_ROWS  # of another unit


@pytest.mark.parametrize("form", FORMATS)
@settings(deadline=None, max_examples=40)
@given(chance=st.randoms(use_true_random=False))
def test_no_flipped_bit_reaches_who_reads(
    form: VectorFormat, chance: random.Random, whole: dict[str, Path]
) -> None:
    """What is read is what was written, or nothing; and all of it is never read."""
    path = whole[form] / "units" / f"0000{chance.randrange(3)}.safetensors"
    rows = [chance.randrange(ROWS) for _ in range(5)]
    wanted = VectorStore(whole[form]).read(rows)
    data = path.read_bytes()
    flip(path, bits=chance.sample(range(8 * len(data)), chance.choice([1, 1, 2, 9])))
    try:
        try:
            np.testing.assert_array_equal(VectorStore(whole[form]).read(rows), wanted)
        except BadInput as error:
            said = str(error)
            assert f"{path}: {DAMAGED}" in said
        with pytest.raises(BadInput, match=DAMAGED):
            VectorStore(whole[form]).vectors()
    finally:
        path.write_bytes(data)


def test_a_file_of_another_encoding_is_refused_at_once(
    whole: dict[str, Path], tmp_path: Path
) -> None:
    """Its own checksums are right."""
    folder = tmp_path / "enc"
    output = output_of(folder, rows=ROWS, unit_rows=UNIT_ROWS)
    write_all(output, -some_vectors())
    name = "units/00001.safetensors"
    (folder / name).write_bytes((whole["fp32"] / name).read_bytes())
    with pytest.raises(BadInput, match=rf"00001\.safetensors: {DAMAGED}"):
        VectorStore(folder).read([100])


def test_a_block_is_compared_once_and_only_if_it_is_read(
    whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The cost that is promised: of a row its block, of everything each block once."""
    seen: list[int] = []
    right = sums.zlib.crc32

    def counted(data: Any) -> int:
        seen.append(len(data))
        return right(data)

    with monkeypatch.context() as patch:
        patch.setattr("toolkit.encoding.formats.BLOCK_BYTES", 2**12)
        folder = encoding(tmp_path / "enc")
    store = VectorStore(folder)
    monkeypatch.setattr(sums.zlib, "crc32", counted)
    store.read([0])
    assert seen == [2**12]
    store.read([0, 1])
    assert len(seen) == 1
    store.read([150])
    assert len(seen) == 2
    store.vectors()
    num_bytes = ROWS * WIDTH * 4
    assert sum(seen) == num_bytes
    store.vectors()
    nearest(store, queries_QD=some_vectors()[:2], top=3)
    assert sum(seen) == num_bytes


@pytest.mark.parametrize("harm", ["flipped", "swapped", "cut"])
def test_damaged_ids_are_never_given(harm: str, tmp_path: Path) -> None:
    folder = encoding(tmp_path)
    path, other = (folder / "units" / f"0000{n}.ids.parquet" for n in (1, 2))
    store = VectorStore(folder)
    assert store.facts([150])["id"].to_pylist() == ["id150"]
    if harm == "flipped":
        flip(path, bits=[8 * (path.stat().st_size // 2)])
    else:
        path.write_bytes(other.read_bytes() if harm == "swapped" else path.read_bytes()[:-1])
    for read in (lambda: store.facts([150]), lambda: store.rows_of(["id1"]), store.ids):
        with pytest.raises(BadInput, match=rf"00001\.ids\.parquet: {DAMAGED}"):
            read()


def test_a_manifest_that_was_altered_is_refused_and_made_anew(tmp_path: Path) -> None:
    folder = encoding(tmp_path)
    path = folder / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"corpus_path": "c"', '"corpus_path": "d"'))
    assert path.read_text() != text
    with pytest.raises(BadInput, match=rf"manifest\.json: {DAMAGED}; the same toolkit\.encode"):
        VectorStore(folder)
    output = output_of(folder, rows=ROWS, unit_rows=UNIT_ROWS)
    assert not output.is_in_manifest([])
    output.write_manifest()
    assert path.read_text() == text


def test_a_marker_that_was_altered_is_an_unfinished_unit(tmp_path: Path) -> None:
    """Whatever of it: else a manifest would repeat it, and no vectors would fit to that."""
    output = output_of(tmp_path, rows=2, unit_rows=1)
    write_all(output, np.ones((2, 3), dtype=np.float32))
    path = tmp_path / "units" / "00001.json"
    marker = read_json(path)
    for key in marker:
        for value in ({"width": 4}, 17, None, "1" * 64):
            write_json(path, {**marker, key: value})
            assert output.damaged(output.units) == [output.units[1]], key
            assert output.write_manifest() == [output.units[1]]


def test_a_damaged_index_is_never_searched(tmp_path: Path) -> None:
    folder = encoding(tmp_path)
    store = VectorStore(folder)
    build_index(store, kind="hnsw")
    Index(store, kind="hnsw").nearest_rows(some_vectors()[:2], 3)
    (path,) = (folder / "index").glob("hnsw-*.faiss")
    data = path.read_bytes()
    for place in range(0, 8 * len(data), 8 * len(data) // 13):
        flip(path, bits=[place])
        with pytest.raises(BadInput, match=rf"{path.name}: {DAMAGED}"):
            Index(store, kind="hnsw")
        path.write_bytes(data)
    record = folder / "index" / "hnsw.json"
    told = json.loads(record.read_text())
    for key, value in told.items():
        other = {"links": 3, "ef_construction": 200, "ef_search": 1} if key == "parameters" else 7
        write_json(record, {**told, key: other if isinstance(value, dict | int) else f"x{value}"})
        with pytest.raises(BadInput):
            Index(store, kind="hnsw")
    write_json(record, told)
    Index(store, kind="hnsw")


@pytest.mark.parametrize(("kind", "other"), [("hnsw", "flat"), ("flat", "hnsw"), ("pq", "ivf")])
def test_a_record_that_names_the_file_of_another_kind_is_refused(
    kind: str, other: str, tmp_path: Path
) -> None:
    """With that file's digest, size and rows."""
    store = VectorStore(encoding(tmp_path))
    build_index(store, kind=kind)
    build_index(store, kind=other)
    record, told = (read_json(tmp_path / "index" / f"{name}.json") for name in (kind, other))
    same = {name: told[name] for name in ("file", "sha256", "bytes")}
    write_json(tmp_path / "index" / f"{kind}.json", {**record, **same})
    with pytest.raises(BadInput, match=rf"{told['file']}: {DAMAGED}; --build-index {kind}"):
        Index(store, kind=kind)


def test_an_index_of_another_width_or_of_other_rows_is_refused(tmp_path: Path) -> None:
    store = VectorStore(encoding(tmp_path / "one"))
    record = build_index(store, kind="flat")
    for name, shape in (("width", (ROWS, WIDTH // 2)), ("rows", (ROWS - 100, WIDTH))):
        other = output_of(tmp_path / name, rows=shape[0], unit_rows=UNIT_ROWS)
        write_all(other, np.ones(shape, dtype=np.float32))
        build_index(VectorStore(other.directory), kind="flat")
        told = read_json(tmp_path / name / "index" / "flat.json")
        same = {key: told[key] for key in ("file", "sha256", "bytes")}
        folder = tmp_path / "one" / "index"
        shutil.copy(tmp_path / name / "index" / told["file"], folder)
        write_json(folder / "flat.json", {**dataclasses.asdict(record), **same})
        with pytest.raises(BadInput, match=rf"{told['file']}: {DAMAGED}; --build-index flat"):
            Index(store, kind="flat")

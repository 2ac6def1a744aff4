"""Units, their files, and who may write into an output directory."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.encoding.conftest import flip_a_byte
from tests.encoding.making import even_bounds, output_of, write_all
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, sha256_of, write_json
from toolkit.base.layout import PLAN_FILE
from toolkit.base.sealed import SELF_DIGEST, content_digest
from toolkit.encoding.encoder import encoder_of
from toolkit.encoding.formats import open_vectors
from toolkit.encoding.output import Output, unit_files, write_unit
from toolkit.encoding.store import VectorStore
from toolkit.encoding.units import (
    CHARS_PER_ROW,
    CHARS_PER_TOKEN,
    FORMAT,
    MAX_ROWS_FACTOR,
    Unit,
    bounds,
    claim_directory,
    facts_digest,
    share,
    units,
)

FACTS: dict[str, Any] = {
    "format": FORMAT,
    "corpus": "c",
    "model": "m",
    "rows": 5,
    "unit_rows": 2,
    "encoder": {},
    "bounds": [0, 2, 4, 5],
    "output": {"vectors": "fp32", "dims": None, "normalize": False},
}
DIGEST = facts_digest(FACTS)
FACTS["digest"] = DIGEST
UNIT = Unit(number=1, start=2, stop=4)


def records(count: int) -> list[dict[str, str]]:
    return [{"id": str(n), "title": f"Tïtle {n}", "text": "..."} for n in range(count)]


def write(output: Path, unit: Unit, *, digest: str = DIGEST) -> NDArray[np.float32]:
    """A unit of random vectors."""
    rows = unit.stop - unit.start
    vectors = np.random.default_rng(unit.number).standard_normal((rows, 3)).astype(np.float32)
    write_unit(output, unit=unit, vectors_RD=vectors, records=records(rows), digest=digest)
    return vectors


def claim(folder: Path, **changes: object) -> None:
    claim_directory(folder, facts={**FACTS, **changes}, model="models/a", corpus="shards/b")


def bounds_of(chars: list[int], *, unit_rows: int, max_tokens: int = 64) -> list[int]:
    return bounds(np.array(chars, dtype=np.int64), unit_rows=unit_rows, max_tokens=max_tokens)


@given(chars=st.lists(st.integers(0, 10_000), max_size=300), size=st.integers(1, 60))
def test_units_cover_every_row_once(chars: list[int], size: int) -> None:
    starts = bounds_of(chars, unit_rows=size)
    made = units(starts)
    assert [row for unit in made for row in range(unit.start, unit.stop)] == list(range(len(chars)))
    assert [unit.number for unit in made] == list(range(len(made)))
    assert all(0 < unit.stop - unit.start <= MAX_ROWS_FACTOR * size for unit in made)
    assert len({unit.name for unit in made}) == len(made)
    assert starts == bounds_of(chars, unit_rows=size)


def test_rows_of_equal_length_make_units_of_equal_rows() -> None:
    assert bounds_of([100] * 10, unit_rows=4) == [0, 4, 7, 10]
    assert bounds_of([100] * 8, unit_rows=4) == [0, 4, 8]
    assert bounds_of([0] * 8, unit_rows=4) == [0, 4, 8]
    assert bounds_of([], unit_rows=4) == [0]


@given(seed=st.integers(0, 10_000), size=st.integers(5, 50))
def test_units_have_about_equal_work(seed: int, size: int) -> None:
    """Within one row's work of the mean, whatever the lengths; a text counts up to the limit."""
    rng = np.random.default_rng(seed)
    chars = rng.lognormal(6, 1.5, size=20 * size).astype(np.int64)
    made = units(bounds_of(chars.tolist(), unit_rows=size, max_tokens=512))
    work = np.minimum(chars, 512 * CHARS_PER_TOKEN) + CHARS_PER_ROW
    each = [work[unit.start : unit.stop].sum() for unit in made]
    mean = work.sum() / (-(-len(chars) // size))
    assert max(each) <= mean + work.max()


def test_a_stretch_of_empty_texts_does_not_fill_the_memory() -> None:
    starts = bounds_of([5000] * 100 + [0] * 1000, unit_rows=10, max_tokens=4096)
    assert max(np.diff(starts)) <= MAX_ROWS_FACTOR * 10


def test_the_plan_of_a_large_corpus_is_made_at_once() -> None:
    began = time.perf_counter()
    starts = bounds(np.full(5_000_000, 1000), unit_rows=4096, max_tokens=512)
    assert len(units(starts)) == 1221
    assert time.perf_counter() - began < 5


@given(rows=st.integers(0, 500), size=st.integers(1, 60), count=st.integers(1, 20))
def test_workers_share_every_unit_once(rows: int, size: int, count: int) -> None:
    made = units(even_bounds(rows, unit_rows=size))
    shares = [share(made, index=index, count=count) for index in range(count)]
    dealt = sorted((unit for part in shares for unit in part), key=lambda unit: unit.number)
    assert dealt == made
    sizes = [len(part) for part in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_written_encoding_is_read_back(tmp_path: Path) -> None:
    claim(tmp_path)
    made = units(even_bounds(5, unit_rows=2))
    output = Output(tmp_path, DIGEST, made)
    assert output.finished() == set()
    expected = [write(tmp_path, unit) for unit in made[:2]]
    assert output.finished() == {"00000", "00001"}
    assert output.write_manifest() == output.unfinished() == [made[2]]
    with pytest.raises(BadInput, match=r"is not finished: run the same toolkit\.encode again"):
        VectorStore(tmp_path)
    expected.append(write(tmp_path, made[2]))
    assert not output.is_in_manifest(["00000"])
    assert output.write_manifest() == output.unfinished() == []
    assert output.is_in_manifest(unit.name for unit in made)
    assert not output.is_in_manifest(["00000", "00009"])
    found = VectorStore(tmp_path)
    assert (found.num_rows, found.units) == (5, made)
    np.testing.assert_array_equal(found.vectors(), np.concatenate(expected))
    assert found.ids() == ["0", "1", "0", "1", "0"]
    mask = np.array([False, True, False, False, True])
    np.testing.assert_array_equal(found.read(mask), found.vectors()[[1, 4]])
    with pytest.raises(BadInput, match=r"a mask of \(4,\): .* has 5 rows"):
        found.read(mask[:4])
    with pytest.raises(BadInput, match="rows are float64: give whole numbers"):
        found.read(np.array([1.5]))
    assert found.read([]).shape == (0, 3)
    assert found.records(made[0])[1] == {"id": "1", "title": "Tïtle 1", "empty": False}
    marker = read_json(unit_files(tmp_path, unit=made[2]).marker)
    assert (marker["start"], marker["rows"], marker["width"]) == (4, 1, 3)


def test_another_format_is_refused(tmp_path: Path) -> None:
    output = output_of(tmp_path, rows=2, unit_rows=1)
    write_all(output, np.ones((2, 3), dtype=np.float32))
    manifest = read_json(tmp_path / "manifest.json")
    write_json(tmp_path / "manifest.json", {**manifest, "format": "toolkit-encoding/1"})
    with pytest.raises(BadInput, match=r"is not of the format toolkit-encoding/\d; encode the"):
        VectorStore(tmp_path)


def test_a_manifest_is_not_made_of_markers_that_cannot_be_read(tmp_path: Path) -> None:
    output = output_of(tmp_path, rows=3, unit_rows=1)
    write_all(output, np.ones((3, 3), dtype=np.float32))
    unit_files(tmp_path, unit=output.units[1]).marker.write_text("{")
    (tmp_path / "manifest.json").unlink()
    assert output.damaged(output.units) == output.write_manifest() == [output.units[1]]
    assert not (tmp_path / "manifest.json").exists()
    output.forget(output.units[1])
    assert output.unfinished() == [output.units[1]]
    assert output.damaged(output.units) == []


def test_no_encoding_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BadInput, match="is not an encoding: make one with"):
            VectorStore(folder)


@pytest.mark.parametrize("kind", ["vectors", "ids", "marker"])
@pytest.mark.parametrize("harm", ["missing", "flipped", "cut", "empty"])
def test_a_damaged_unit_is_not_finished(kind: str, harm: str, tmp_path: Path) -> None:
    write(tmp_path, UNIT)
    assert Output(tmp_path, DIGEST, [UNIT]).is_finished(UNIT)
    path: Path = getattr(unit_files(tmp_path, unit=UNIT), kind)
    if harm == "missing":
        path.unlink()
    elif harm == "flipped":
        flip_a_byte(path)
    else:
        path.write_bytes(path.read_bytes()[:-9] if harm == "cut" else b"{}")
    assert not Output(tmp_path, DIGEST, [UNIT]).is_finished(UNIT)
    write(tmp_path, UNIT)
    assert Output(tmp_path, DIGEST, [UNIT]).is_finished(UNIT)


def test_a_unit_of_another_encoding_is_refused(tmp_path: Path) -> None:
    write(tmp_path, UNIT, digest="1" * 64)
    with pytest.raises(BadInput, match=r"00001\.json: belongs to another encoding"):
        Output(tmp_path, DIGEST, [UNIT]).is_finished(UNIT)


def test_a_reader_names_a_damaged_file(tmp_path: Path) -> None:
    claim(tmp_path)
    made = units(even_bounds(5, unit_rows=2))
    for unit in made:
        write(tmp_path, unit)
    assert Output(tmp_path, DIGEST, made).write_manifest() == []
    found, files = VectorStore(tmp_path), unit_files(tmp_path, unit=made[1])
    again = r"is missing or damaged; the same toolkit\.encode again makes it anew"
    files.vectors.write_bytes(files.vectors.read_bytes()[:-5])
    files.ids.write_bytes(files.ids.read_bytes()[:-5])
    for _ in range(2):  # cut, then missing
        with pytest.raises(BadInput, match=rf"00001\.safetensors: {again}"):
            found.vectors()
        with pytest.raises(BadInput, match=rf"00001\.ids\.parquet: {again}"):
            found.ids()
        files.vectors.unlink(missing_ok=True)
        files.ids.unlink(missing_ok=True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused(value: float, tmp_path: Path) -> None:
    vectors = np.ones((2, 3), dtype=np.float32)
    vectors[1, 2] = value
    with pytest.raises(BadInput, match="id '1': its vector is not finite; use encoder"):
        write_unit(tmp_path, unit=UNIT, vectors_RD=vectors, records=records(2), digest=DIGEST)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fact", ["corpus", "model", "rows", "unit_rows", "encoder", "bounds", "output"]
)
def test_a_directory_of_another_encoding_is_refused(fact: str, tmp_path: Path) -> None:
    claim(tmp_path)
    claim(tmp_path)  # the same again is welcome
    before = (tmp_path / PLAN_FILE).read_bytes()
    with pytest.raises(BadInput, match=f"holds an encoding of another {fact}; choose another"):
        claim(tmp_path, **{fact: "other", "digest": "1" * 64})
    assert (tmp_path / PLAN_FILE).read_bytes() == before
    with pytest.raises(BadInput, match="another corpus and model;"):
        claim(tmp_path, corpus="other", model="other", bounds=[0, 5])


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BadInput, match="is neither empty nor an encoding"):
        claim(tmp_path)
    assert not (tmp_path / PLAN_FILE).exists()
    with pytest.raises(BadInput, match="is a file; choose a directory"):
        claim(tmp_path / "thesis.tex")
    (tmp_path / "thesis.tex").unlink()
    claim(tmp_path)  # a launcher's logs may be there first


def test_workers_may_claim_a_directory_at_the_same_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other worker writes its plan between any two of our looks at the directory."""
    listing = Path.iterdir

    def after_the_other(folder: Path) -> Iterator[Path]:
        write_json(folder / PLAN_FILE, FACTS)
        return listing(folder)

    (tmp_path / f".{PLAN_FILE}.host.123.tmp").touch()  # half-way through its write
    claim(tmp_path)
    (tmp_path / PLAN_FILE).unlink()
    monkeypatch.setattr(Path, "iterdir", after_the_other)
    claim(tmp_path)
    assert read_json(tmp_path / PLAN_FILE) == FACTS


def swap(one: Path, other: Path) -> None:
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def reseal(path: Path, content: dict[str, Any]) -> None:
    """A manifest that has been written anew, with a digest of its own that is right."""
    write_json(path, {**content, SELF_DIGEST: content_digest(content)})


UNIT_HARMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing unit": (
        lambda enc: [path.unlink() for path in (enc / "units").glob("00001.*")] and None,
        "00001.json",
    ),
    "vectors swapped": (
        lambda enc: swap(enc / "units/00000.safetensors", enc / "units/00001.safetensors"),
        "00000.safetensors",
    ),
    "ids swapped": (
        lambda enc: swap(enc / "units/00000.ids.parquet", enc / "units/00001.ids.parquet"),
        "00000.ids.parquet",
    ),
    "units swapped": (
        lambda enc: (
            [
                swap(path, path.with_name(path.name.replace("00000", "00001")))
                for path in sorted((enc / "units").glob("00000.*"))
            ]
            and None
        ),
        "00000.json",
    ),
    "wrong digest of a file": (
        lambda enc: write_json(
            enc / "units/00001.json",
            {**read_json(enc / "units/00001.json"), "sha256": {"00001.safetensors": DIGEST}},
        ),
        "00001.json",
    ),
    "wrong digest of the manifest": (
        lambda enc: write_json(
            enc / "manifest.json", {**read_json(enc / "manifest.json"), SELF_DIGEST: DIGEST}
        ),
        "manifest.json",
    ),
    "manifest of another model": (
        lambda enc: reseal(
            enc / "manifest.json", {**read_json(enc / "manifest.json"), "model": "other"}
        ),
        "manifest.json",
    ),
    "manifest of other vectors": (
        lambda enc: reseal(
            enc / "manifest.json",
            json.loads(
                (enc / "manifest.json")
                .read_text()
                .replace(sha256_of(enc / "units/00002.safetensors"), DIGEST)
            ),
        ),
        "00002.json",
    ),
}


@pytest.mark.parametrize("harm", UNIT_HARMS)
def test_whatever_was_done_to_a_unit_is_found_by_name(harm: str, tmp_path: Path) -> None:
    """By toolkit.verify, which says so with this."""
    output = output_of(tmp_path, rows=6, unit_rows=2)
    write_all(output, np.arange(1, 19, dtype=np.float32).reshape(6, 3))
    VectorStore(tmp_path, verify=True)
    do, named = UNIT_HARMS[harm]
    do(tmp_path)
    with pytest.raises(BadInput, match=named):
        VectorStore(tmp_path, verify=True)


EDITS: dict[str, Any] = {
    "rows": 5,
    "corpus": "other",
    "model": "other",
    "output": {"vectors": "fp32", "dims": None, "normalize": True},
    "encoder": {"max_tokens": 9},
    "more": 1,
}


@pytest.mark.parametrize("fact", EDITS)
def test_edited_facts_are_of_no_encoding(fact: str, tmp_path: Path) -> None:
    """Whoever reads them: the digest of an encoding is that of its facts."""
    output = output_of(tmp_path, rows=6, unit_rows=2)
    write_all(output, np.arange(1, 19, dtype=np.float32).reshape(6, 3))
    path, whole = tmp_path / "manifest.json", read_json(tmp_path / "manifest.json")
    reseal(path, {**whole, fact: EDITS[fact]})
    with pytest.raises(BadInput, match=r"manifest\.json: is damaged \(its digest is not"):
        VectorStore(tmp_path)
    reseal(path, {**whole, "corpus_path": "moved"})  # no fact
    VectorStore(tmp_path)
    plan = read_json(tmp_path / PLAN_FILE)
    edited = {**plan, fact: EDITS[fact]}
    write_json(tmp_path / PLAN_FILE, edited)
    with pytest.raises(BadInput, match=r"plan\.json: is damaged \(its digest is not that of"):
        output.write_manifest()
    # Nor by those who ask for just these.
    facts = {key: value for key, value in edited.items() if not key.endswith(("path", "paths"))}
    with pytest.raises(BadInput, match=r"plan\.json: is damaged"):
        claim_directory(tmp_path, facts=facts, model="m", corpus="c")


LONG = "x" * 300
WRONG: dict[str, tuple[Any, ...]] = {
    "rows": (None, "6", -1, 6.0, True, 2**70),
    "output": (None, {}, [], {"vectors": "fp32", "dims": "3"}, {"vectors": "fp32", "dims": 2**70}),
    "model": (None, 3, []),
    "model_path": (None, 3, ["m"], LONG, "a\0b", "m/" * 3000),
    "corpus_path": (None, 3, {}, LONG, "a\0b"),
    "adapter_paths": (None, "m", [3], [LONG]),
    "corpus": (None, 3),
    "encoder": (3, "x", []),
    "bounds": (None, 3, "x", [0, "6"]),
    "units": (None, [], {}),
    "digest": (None, 3),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_manifest_with_a_right_digest_and_wrong_fields_is_refused(
    key: str, tmp_path: Path
) -> None:
    write_all(output_of(tmp_path, rows=6, unit_rows=2), np.ones((6, 3), dtype=np.float32))
    path, whole = tmp_path / "manifest.json", read_json(tmp_path / "manifest.json")
    without = {name: value for name, value in whole.items() if name != key}
    for content in (without, *({**whole, key: value} for value in WRONG[key])):
        if content == whole or (content is without and key in ("encoder", "adapter_paths")):
            continue
        content = {**content}
        if "digest" in content and key != "digest":
            content["digest"] = digest = facts_digest(content)
            units_told = content.get("units", {})
            for marker in units_told.values() if isinstance(units_told, dict) else ():
                marker["encoding"] = digest
        reseal(path, content)
        with pytest.raises(BadInput, match=re.escape(str(tmp_path))):
            VectorStore(tmp_path)


@pytest.mark.parametrize(
    "told",
    [
        None,
        {},
        {"max_tokens": "x"},
        {"max_tokens": 10**30},
        {"strange": 1},
        {"model": "m"},
        {"adapters": []},
    ],
)
def test_an_encoder_that_is_not_told_is_refused_by_the_manifests_name(
    told: Any, tiny_model: Path, tmp_path: Path
) -> None:
    write_all(output_of(tmp_path, rows=6, unit_rows=2), np.ones((6, 3), dtype=np.float32))
    store = VectorStore(tmp_path)
    if told is not None:
        store.manifest["encoder"] = told
    with pytest.raises(BadInput, match=re.escape(str(tmp_path))):
        encoder_of(store, model=str(tiny_model))


@pytest.mark.parametrize("rows", [5, [[1, 2]], [[1], [2, 3]], np.ones((2, 2), dtype=bool), [[]]])
def test_rows_that_are_no_list_are_refused(rows: Any, tmp_path: Path) -> None:
    write_all(output_of(tmp_path, rows=6, unit_rows=2), np.ones((6, 3), dtype=np.float32))
    for read in (VectorStore(tmp_path).read, VectorStore(tmp_path).facts):
        with pytest.raises(BadInput, match=r"give whole numbers|give a list of them|a mask of"):
            read(rows)
    assert VectorStore(tmp_path).read([]).shape == (0, 3)


@pytest.mark.parametrize("ids", [[3], ["\ud800"], "id1", 7, [["id1"]], [None]])
def test_ids_that_are_no_texts_are_refused(ids: Any, tmp_path: Path) -> None:
    write_all(output_of(tmp_path, rows=6, unit_rows=2), np.ones((6, 3), dtype=np.float32))
    with pytest.raises(BadInput, match=r"an id is a text of valid Unicode|no row has the id"):
        VectorStore(tmp_path).rows_of(ids)
    assert VectorStore(tmp_path).rows_of([]).shape == (0,)


@pytest.mark.parametrize("value", [3.4e38, -3.4e38])
def test_what_bf16_cannot_hold_is_refused(value: float, tmp_path: Path) -> None:
    vectors = np.ones((2, 3), dtype=np.float32)
    vectors[1, 0] = value
    options: dict[str, Any] = {"unit": UNIT, "records": records(2), "digest": DIGEST}
    with pytest.raises(BadInput, match=r"id '1': .* more than bf16 can hold; use vectors=fp32, or"):
        write_unit(tmp_path, vectors_RD=vectors, form="bf16", **options)
    assert not list(tmp_path.iterdir())
    # The largest that it does hold is stored as itself.
    vectors[1, 0] = torch.finfo(torch.bfloat16).max
    write_unit(tmp_path, vectors_RD=vectors, form="bf16", **options)
    path = unit_files(tmp_path, unit=UNIT).vectors
    found = open_vectors(path, form="bf16", rows=2, width=3).rows(slice(None))
    np.testing.assert_array_equal(found, vectors)


def test_every_flipped_bit_of_an_encoding_is_found(tmp_path: Path) -> None:
    """A bit of each byte of each file, but for blanks between the words of JSON."""
    output = output_of(tmp_path, rows=2, unit_rows=1)
    write_all(output, np.ones((2, 3), dtype=np.float32))
    missed = []
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        data = path.read_bytes()
        for place in range(len(data)):
            harmed = data[:place] + bytes([data[place] ^ (1 << place % 7)]) + data[place + 1 :]
            path.write_bytes(harmed)
            try:
                VectorStore(tmp_path, verify=True)
            except BadInput:
                continue
            if path.suffix != ".json" or json.loads(harmed) != json.loads(data):
                missed.append((path.name, place))
        path.write_bytes(data)
    assert missed == []

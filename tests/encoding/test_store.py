"""Units, their files, and who may write into an output directory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.encoding.conftest import flip_a_byte
from toolkit.encoding.plan import PLAN_FILE, Unit, claim_directory, share, units
from toolkit.encoding.store import (
    VectorStore,
    is_finished,
    unit_files,
    write_manifest,
    write_unit,
)
from toolkit.files import BadInput, read_json, write_json

DIGEST = "0" * 64
FACTS = {"corpus": "c", "model": "m", "rows": 5, "unit_rows": 2, "encoder": {}, "digest": DIGEST}
UNIT = Unit(number=1, start=2, stop=4)


def records(count: int) -> list[dict[str, str]]:
    return [{"id": str(n), "title": f"Tïtle {n}", "text": "..."} for n in range(count)]


def write(output: Path, unit: Unit, *, digest: str = DIGEST) -> NDArray[np.float32]:
    """A unit of random vectors."""
    rows = unit.stop - unit.start
    vectors = np.random.default_rng(unit.number).standard_normal((rows, 3)).astype(np.float32)
    write_unit(output, unit=unit, vectors_RD=vectors, records=records(rows), digest=digest)
    return vectors


def claim(output: Path, **changes: object) -> None:
    claim_directory(output, facts={**FACTS, **changes}, model="models/a", corpus="shards/b")


@given(rows=st.integers(0, 500), size=st.integers(1, 60))
def test_units_cover_every_row_once(rows: int, size: int) -> None:
    made = units(rows, unit_rows=size)
    assert [row for unit in made for row in range(unit.start, unit.stop)] == list(range(rows))
    assert [unit.number for unit in made] == list(range(len(made)))
    assert all(unit.stop - unit.start == size for unit in made[:-1])
    assert len({unit.name for unit in made}) == len(made)


@given(rows=st.integers(0, 500), size=st.integers(1, 60), count=st.integers(1, 20))
def test_workers_share_every_unit_once(rows: int, size: int, count: int) -> None:
    made = units(rows, unit_rows=size)
    shares = [share(made, index=index, count=count) for index in range(count)]
    dealt = sorted((unit for part in shares for unit in part), key=lambda unit: unit.number)
    assert dealt == made
    sizes = [len(part) for part in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_written_encoding_is_read_back(tmp_path: Path) -> None:
    claim(tmp_path)
    made = units(5, unit_rows=2)
    expected = [write(tmp_path, unit) for unit in made[:2]]
    assert not write_manifest(tmp_path)
    with pytest.raises(BadInput, match=r"is not finished: run the same toolkit\.encode again"):
        VectorStore(tmp_path)
    expected.append(write(tmp_path, made[2]))
    assert write_manifest(tmp_path)
    found = VectorStore(tmp_path)
    assert (found.num_rows, found.units) == (5, made)
    np.testing.assert_array_equal(found.vectors(), np.concatenate(expected))
    assert found.ids() == ["0", "1", "0", "1", "0"]
    assert found.records(made[0])[1] == {"id": "1", "title": "Tïtle 1"}
    marker = read_json(unit_files(tmp_path, unit=made[2]).marker)
    assert (marker["start"], marker["rows"], marker["width"]) == (4, 1, 3)


def test_no_encoding_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BadInput, match="is not an encoding: make one with"):
            VectorStore(folder)


@pytest.mark.parametrize("kind", ["vectors", "ids", "marker"])
@pytest.mark.parametrize("harm", ["missing", "flipped", "cut", "empty"])
def test_a_damaged_unit_is_not_finished(kind: str, harm: str, tmp_path: Path) -> None:
    write(tmp_path, UNIT)
    assert is_finished(tmp_path, unit=UNIT, digest=DIGEST)
    path: Path = getattr(unit_files(tmp_path, unit=UNIT), kind)
    if harm == "missing":
        path.unlink()
    elif harm == "flipped":
        flip_a_byte(path)
    else:
        path.write_bytes(path.read_bytes()[:-9] if harm == "cut" else b"{}")
    assert not is_finished(tmp_path, unit=UNIT, digest=DIGEST)
    write(tmp_path, UNIT)
    assert is_finished(tmp_path, unit=UNIT, digest=DIGEST)


def test_a_unit_of_another_encoding_is_refused(tmp_path: Path) -> None:
    write(tmp_path, UNIT, digest="1" * 64)
    with pytest.raises(BadInput, match=r"00001\.json: belongs to another encoding"):
        is_finished(tmp_path, unit=UNIT, digest=DIGEST)


def test_a_reader_names_a_damaged_file(tmp_path: Path) -> None:
    claim(tmp_path)
    made = units(5, unit_rows=2)
    for unit in made:
        write(tmp_path, unit)
    write_manifest(tmp_path)
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
    with pytest.raises(BadInput, match="id '1': its vector is not finite; use dtype fp32"):
        write_unit(tmp_path, unit=UNIT, vectors_RD=vectors, records=records(2), digest=DIGEST)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fact", ["corpus", "model", "rows", "unit_rows", "encoder"])
def test_a_directory_of_another_encoding_is_refused(fact: str, tmp_path: Path) -> None:
    claim(tmp_path)
    claim(tmp_path)  # the same again is welcome
    before = (tmp_path / PLAN_FILE).read_bytes()
    with pytest.raises(BadInput, match=f"holds an encoding of another {fact}; choose another"):
        claim(tmp_path, **{fact: "other", "digest": "1" * 64})
    assert (tmp_path / PLAN_FILE).read_bytes() == before
    with pytest.raises(BadInput, match="another corpus and model;"):
        claim(tmp_path, corpus="other", model="other")


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

"""The reader: by row, by id, as numpy, torch and Arrow, in every format."""

import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.encoding.making import output_of, write_all
from toolkit.base.errors import BadInput
from toolkit.encoding.formats import encode, unit_length
from toolkit.encoding.search import nearest
from toolkit.encoding.store import VectorStore
from toolkit.settings.schema import VectorFormat

ROWS, WIDTH = 23, 12
FORMATS: tuple[VectorFormat, ...] = get_args(VectorFormat)


def random_vectors() -> NDArray[np.float32]:
    found = np.random.default_rng(3).standard_normal((ROWS, WIDTH)).astype(np.float32)
    found[5] = 0  # a text without tokens
    return found


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VectorStore]:
    made = {}
    for form in FORMATS:
        folder = tmp_path_factory.mktemp(form)
        write_all(output_of(folder, rows=ROWS, unit_rows=4, form=form), random_vectors())
        made[form] = VectorStore(folder, verify=True)
    return made


@pytest.mark.parametrize("form", FORMATS)
@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.integers(0, ROWS - 1), max_size=40))
def test_rows_in_any_order_are_those_of_all(
    form: VectorFormat, rows: list[int], stores: dict[str, VectorStore]
) -> None:
    store = stores[form]
    everything = store.vectors()
    assert everything.shape == (ROWS, WIDTH)
    np.testing.assert_array_equal(store.read(rows), everything[rows])
    assert store.read(rows).dtype == np.float32


def test_fp32_is_what_was_written(stores: dict[str, VectorStore]) -> None:
    np.testing.assert_array_equal(stores["fp32"].vectors(), random_vectors())


@pytest.mark.parametrize("some", [slice(None), slice(3, 17), slice(20, 2, -3), slice(5, 5)])
def test_a_slice_is_that_of_the_matrix(some: slice, stores: dict[str, VectorStore]) -> None:
    np.testing.assert_array_equal(stores["fp32"].read(some), random_vectors()[some])


def test_rows_are_found_by_their_ids(stores: dict[str, VectorStore]) -> None:
    store = stores["fp32"]
    ids = ["id22", "id0", "id7", "id0"]
    assert store.rows_of(ids).tolist() == [22, 0, 7, 0]
    np.testing.assert_array_equal(store.read(store.rows_of(ids)), random_vectors()[[22, 0, 7, 0]])
    assert store.rows_of([]).tolist() == []
    with pytest.raises(BadInput, match="no row has the id 'id23'"):
        store.rows_of(["id1", "id23"])


def test_rows_come_as_a_tensor(stores: dict[str, VectorStore]) -> None:
    found = stores["fp32"].tensor([3, 1])
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.from_numpy(random_vectors()[[3, 1]]))


def test_as_arrow_and_as_a_data_set(stores: dict[str, VectorStore]) -> None:
    rows = [22, 5, 0, 5]
    table = stores["fp32"].table(rows)
    assert table.column_names == ["id", "title", "empty", "vector"]
    assert table["id"].to_pylist() == ["id22", "id5", "id0", "id5"]
    assert table["empty"].to_pylist() == [False, True, False, True]
    np.testing.assert_array_equal(
        np.array(table["vector"].to_pylist(), dtype=np.float32), random_vectors()[rows]
    )
    found = stores["fp32"].dataset(rows).with_format("numpy")
    assert len(stores["fp32"].dataset()) == ROWS
    np.testing.assert_array_equal(found[0]["vector"], random_vectors()[22])
    assert len(stores["fp32"].table([])) == 0


@pytest.mark.parametrize("rows", [[0, ROWS], [-1]])
def test_a_row_that_is_not_there_is_refused(
    rows: list[int], stores: dict[str, VectorStore]
) -> None:
    with pytest.raises(BadInput, match=f"row (-1|{ROWS}): .* has rows 0 to {ROWS - 1}"):
        stores["fp32"].read(rows)


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    """A store of 400 MB, of which a few rows are wanted: what the process holds grows by little."""
    rows, width = 100_000, 1000
    output = output_of(tmp_path, rows=rows, unit_rows=rows // 2)
    write_all(output, np.zeros((rows, width), dtype=np.float32))
    store = VectorStore(tmp_path)

    def resident_mib() -> float:
        """Without files, which the kernel maps in large pieces and can drop."""
        (line,) = re.findall(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
        return int(line) / 1024

    before = resident_mib()
    found = store.read(np.arange(0, rows, 997))
    assert found.shape == (101, width)
    assert resident_mib() - before < 30


def test_two_rows_with_one_id_are_named(tmp_path: Path) -> None:
    output = output_of(tmp_path, rows=4, unit_rows=2)
    vectors = np.ones((2, 3), np.float32)
    records = [{"id": "a", "title": ""}, {"id": "a", "title": ""}]
    with pytest.raises(BadInput, match="id 'a': two rows have it"):
        output.write(output.units[0], vectors, records)
    assert not (tmp_path / "units").exists()
    for unit, second in zip(output.units, ("b", "c"), strict=True):
        output.write(unit, vectors, [records[0], {"id": second, "title": ""}])
    output.write_manifest()
    store = VectorStore(tmp_path)
    assert store.rows_of(["b", "c"]).tolist() == [1, 3]
    with pytest.raises(BadInput, match="two rows have the id 'a'"):
        store.rows_of(["c", "a"])


def test_what_fp16_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    vectors = np.full((2, 3), 7e4, np.float32)
    vectors[0] = 1
    records = [{"id": name, "title": ""} for name in "ab"]
    output = output_of(tmp_path / "a", rows=2, unit_rows=2, form="fp16")
    with pytest.raises(BadInput, match="id 'b': its vector has 70000, more than fp16 can hold"):
        output.write(output.units[0], vectors, records)
    for form in ("fp32", "bf16", "int8", "binary"):
        other = output_of(tmp_path / form, rows=2, unit_rows=2, form=form)
        other.write(other.units[0], vectors, records)


def test_a_mapped_file_that_was_cut_is_named(tmp_path: Path) -> None:
    write_all(output_of(tmp_path, rows=4, unit_rows=2), np.ones((4, 3), np.float32))
    path = tmp_path / "units" / "00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    store = VectorStore(tmp_path)
    assert len(store.read([0, 1])) == 2
    with pytest.raises(BadInput, match=r"00001\.safetensors: is missing or damaged"):
        store.read([2])


@pytest.mark.parametrize(("form", "least"), [("fp16", 1.0), ("bf16", 1.0), ("int8", 0.95)])
def test_search_finds_the_same_with_fewer_bits(
    form: VectorFormat, least: float, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    vectors = unit_length(rng.standard_normal((500, 64)).astype(np.float32))
    queries = vectors[:50] + 0.3 * unit_length(rng.standard_normal((50, 64)).astype(np.float32))
    found = []
    for one in ("fp32", form):
        write_all(output_of(tmp_path / one, rows=500, unit_rows=100, form=one), vectors)
        hits = nearest(VectorStore(tmp_path / one), queries_QD=queries, top=1)
        found.append([row[0].id for row in hits])
    same = np.mean([a == b for a, b in zip(*found, strict=True)])
    assert same >= least


def test_fewer_bits_are_fewer_bytes() -> None:
    vectors = np.ones((1000, 256), np.float32)
    sizes = [len(encode(vectors, form=form)) / vectors.nbytes for form in FORMATS]
    assert sizes == pytest.approx([1, 1 / 2, 1 / 2, 1 / 4 + 1 / 256, 1 / 32], abs=0.001)

"""An encoding as one Parquet file, as others read it."""

import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import contents
from tests.encoding.conftest import flip_a_byte
from tests.encoding.making import output_of, write_all
from toolkit import export
from toolkit.base.errors import BadInput
from toolkit.encoding.parquet import write_parquet
from toolkit.encoding.store import VectorStore
from toolkit.settings.schema import VectorFormat

ROWS, WIDTH = 23, 12


def encoding(folder: Path, *, rows: int = ROWS, form: VectorFormat = "fp32") -> Path:
    vectors = np.random.default_rng(3).standard_normal((rows, WIDTH)).astype(np.float32)
    write_all(output_of(folder, rows=rows, unit_rows=4, form=form), vectors)
    return folder


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_what_others_read_is_what_the_store_reads(form: VectorFormat, tmp_path: Path) -> None:
    import datasets

    store = VectorStore(encoding(tmp_path / "enc", form=form))
    out = tmp_path / "new" / "all.parquet"
    assert export.main([str(store.directory), str(out)]) == 0
    found = pq.read_table(out)
    assert found.schema.field("vector").type == pa.list_(pa.float32(), WIDTH)
    assert found.equals(store.table(slice(None)))
    assert pq.ParquetFile(out).num_row_groups == len(store.units)
    assert found.schema.metadata[b"encoding"].decode() == store.manifest["manifest_sha256"]
    rows = datasets.load_dataset("parquet", data_files=str(out), cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal(rows["train"].with_format("numpy")[:]["vector"], store.vectors())
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_killed_export_leaves_nothing_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = encoding(tmp_path / "enc"), tmp_path / "all.parquet"
    killed_before = tmp_path / ".all.parquet.node7.12.tmp"
    killed_before.write_bytes(b"of a killed one")
    os.utime(killed_before, (0, 0))

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", killed)
        with pytest.raises(KeyboardInterrupt):
            write_parquet(folder, out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["enc"]
    assert write_parquet(folder, out=out) == ROWS


def test_of_two_exports_to_one_file_one_is_told_that_it_has_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has all its rows in a temporary file when the first gives its file the name."""
    out, both, link = tmp_path / "all.parquet", threading.Barrier(2), os.link
    refused: list[str] = []

    def together(source: Path, target: Path) -> None:
        both.wait(timeout=60)
        link(source, target)

    def write(seed: int) -> None:
        try:
            write_parquet(encodings[seed], out=out)
        except BadInput as error:
            refused.append(f"{seed}: {error}")

    encodings = [encoding(tmp_path / "ten", rows=10), encoding(tmp_path / "twenty", rows=20)]
    monkeypatch.setattr(os, "link", together)
    threads = [threading.Thread(target=write, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loser, said = int(refused[0][0]), refused[0][3:]
    assert len(refused) == 1
    assert said == f"{out}: is there already; choose another"
    assert pq.read_metadata(out).num_rows == (20, 10)[loser]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.parquet", "ten", "twenty"]


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    folder, out = encoding(tmp_path / "enc"), tmp_path / "all.parquet"
    with pytest.raises(BadInput, match=r"give a name that ends in \.parquet"):
        write_parquet(folder, out=tmp_path / "all")
    with pytest.raises(BadInput, match="has no rows to export"):
        write_parquet(encoding(tmp_path / "none", rows=0), out=out)
    flip_a_byte(folder / "units" / "00003.safetensors")
    before = contents(tmp_path)
    with pytest.raises(BadInput, match=r"00003\.safetensors: is missing or damaged"):
        write_parquet(folder, out=out)
    assert contents(tmp_path) == before
    out.touch()
    with pytest.raises(BadInput, match="is there already; choose another"):
        write_parquet(folder, out=out)
    (folder / "manifest.json").unlink()
    with pytest.raises(BadInput, match="is not finished: run the same"):
        write_parquet(folder, out=tmp_path / "other.parquet")

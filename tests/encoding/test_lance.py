"""An encoding as a Lance dataset, read by pylance itself."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import contents
from tests.encoding.conftest import flip_a_byte
from tests.encoding.making import output_of, write_all
from toolkit import export
from toolkit.base.errors import BadInput
from toolkit.encoding.lance_dataset import write_lance
from toolkit.encoding.store import VectorStore

ROWS, WIDTH = 23, 12


@pytest.fixture
def encoding(tmp_path: Path) -> Path:
    vectors = np.random.default_rng(3).standard_normal((ROWS, WIDTH)).astype(np.float32)
    write_all(output_of(tmp_path / "enc", rows=ROWS, unit_rows=4, form="int8"), vectors)
    return tmp_path / "enc"


def test_what_pylance_reads_is_what_the_store_reads(encoding: Path, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    out = tmp_path / "new" / "all.lance"
    assert export.main([str(encoding), str(out)]) == 0
    dataset, store = lance.dataset(str(out)), VectorStore(encoding)
    assert dataset.to_table().equals(store.table(slice(None)))
    assert dataset.schema.metadata[b"encoding"].decode() == store.manifest["manifest_sha256"]
    found = dataset.to_table(
        nearest={"column": "vector", "q": store.vectors()[17], "k": 1}, columns=["id"]
    )
    assert found["id"].to_pylist() == ["id17"]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_killed_export_leaves_nothing_and_the_next_one_writes(
    encoding: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "all.lance"
    left = tmp_path / ".all.lance.node7.12.tmp"
    left.mkdir()
    os.utime(left, (0, 0))

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            write_lance(encoding, out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["enc"]
    assert write_lance(encoding, out=out) == ROWS


def test_what_is_there_stays(
    encoding: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the beginning, and when somebody else has written it since."""
    out, rename = tmp_path / "all.lance", os.rename

    def after_somebody_else(source: Path, target: Path) -> None:
        out.mkdir()
        (out / "theirs").touch()
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", after_somebody_else)
        with pytest.raises(BadInput, match="is there already"):
            write_lance(encoding, out=out)
    before = contents(out)
    with pytest.raises(BadInput, match="is there already"):
        write_lance(encoding, out=out)
    assert contents(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.lance", "enc"]


def test_without_pylance(
    encoding: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "lance", None)
    assert export.main([str(encoding), str(tmp_path / "all.lance")]) == 2
    assert "pip install pylance" in capsys.readouterr().err
    assert export.main([str(encoding), str(tmp_path / "all.csv")]) == 2
    assert "ends in .parquet or .lance" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["00001.safetensors", "00001.ids.parquet"])
def test_a_damaged_unit_is_one_line_with_its_file(
    name: str, encoding: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = encoding / "units" / name
    flip_a_byte(path)
    assert export.main([str(encoding), str(tmp_path / "all.lance")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: is missing or damaged")
    assert [entry.name for entry in tmp_path.iterdir()] == ["enc"]

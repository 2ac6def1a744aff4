"""A disk without room, under every door that writes: a line that names the path, exit code 1, and
the same command goes on once there is room."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from data_scripts import shard_wikipedia
from tests.conftest import QUICKSTART, need
from tests.encoding.making import output_of, write_all
from toolkit import encode, evaluate, export, search
from toolkit.base.errors import full_disk
from toolkit.base.files import committed_directory, write_atomic
from toolkit.command_line.door import guarded
from toolkit.encoding.store import VectorStore
from toolkit.evaluation.word_features import new_map
from toolkit.launching.jobs import errors_as_lines
from toolkit.text.pairs import Pair, PairTask, write_pairs

ROOM = 2**20
Said = pytest.CaptureFixture[str]


@pytest.fixture
def inputs(tiny_model: Path, shards: Path) -> tuple[str, str]:
    return f"encoder.model={tiny_model}", f"corpus.input={shards}"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of one MiB."""
    need(os.geteuid() == 0 and bool(shutil.which("mount")), "needs root, to mount a tmpfs")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    need(done.returncode == 0, f"no tmpfs can be mounted: {done.stderr}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def leave(disk: Path, *, num_bytes: int) -> None:
    """Fill the disk but for so much."""
    filler = disk / ".filler"
    filler.unlink(missing_ok=True)
    free = shutil.disk_usage(disk).free
    filler.write_bytes(bytes(max(0, free - num_bytes)))


def is_one_line(capsys: Said, *, code: int, names: Path) -> None:
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 1, said
    assert len(lines) == 1 and "Traceback" not in said, said
    assert str(names) in lines[0], said
    assert "make room there, then the same command goes on" in lines[0], said


@pytest.mark.parametrize("kib", [0, 8, 40, 100])
def test_an_encoding_names_the_full_disk_and_goes_on(
    kib: int, disk: Path, inputs: tuple[str, str], capsys: Said
) -> None:
    output = disk / "enc"
    arguments = ["tiny_embed", f"output_dir={output}", "encoder.max_tokens=16", *inputs]
    leave(disk, num_bytes=kib * 2**10)
    is_one_line(capsys, code=encode.main(arguments), names=output)
    (disk / ".filler").unlink()
    assert encode.main(arguments) == 0
    assert VectorStore(output, verify=True).num_rows > 0


@pytest.mark.parametrize("kib", [0, 40, 120])
def test_shards_name_the_full_disk_and_go_on(kib: int, disk: Path, capsys: Said) -> None:
    """Written by worker processes, which hand their error on."""
    arguments = ["--input", str(QUICKSTART / "encyclopedia.xml.bz2"), "--workers", "2"]
    arguments += ["--output", str(disk / "shards"), "--rows-per-shard", "40"]
    leave(disk, num_bytes=kib * 2**10)
    is_one_line(capsys, code=shard_wikipedia.main(arguments), names=disk)
    (disk / ".filler").unlink()
    assert shard_wikipedia.main(arguments) == 0


@pytest.fixture
def encoding(tmp_path: Path) -> Path:
    folder = tmp_path / "enc"
    vectors = np.random.default_rng(0).standard_normal((500, 300)).astype(np.float32)
    write_all(output_of(folder, rows=500, unit_rows=100), vectors)
    return folder


@pytest.mark.parametrize("kib", [0, 100])
def test_an_export_to_parquet(kib: int, disk: Path, encoding: Path, capsys: Said) -> None:
    out = disk / "all.parquet"
    leave(disk, num_bytes=kib * 2**10)
    is_one_line(capsys, code=export.main([str(encoding), str(out)]), names=out)
    assert [path.name for path in disk.iterdir()] == [".filler"]
    (disk / ".filler").unlink()
    assert export.main([str(encoding), str(out)]) == 0


@pytest.mark.parametrize("kib", [0, 200])
def test_an_index_names_the_full_disk_and_goes_on(
    kib: int, disk: Path, encoding: Path, capsys: Said
) -> None:
    pytest.importorskip("faiss")
    (disk / "index").mkdir()
    (encoding / "index").symlink_to(disk / "index")
    leave(disk, num_bytes=kib * 2**10)
    arguments = [str(encoding), "--build-index", "flat"]
    is_one_line(capsys, code=search.main(arguments), names=encoding / "index")
    (disk / ".filler").unlink()
    assert search.main(arguments) == 0


def test_scores_name_the_full_disk_and_go_on(
    disk: Path, tiny_model: Path, tmp_path: Path, capsys: Said
) -> None:
    (tmp_path / "sts.tsv").write_text("5\tone two\tone two\n0\tthree\tfour five\n2\tsix\tseven\n")
    output = disk / "scores"
    arguments = [
        "quickstart_evaluate",
        f"encoders={{tiny: {{model: {tiny_model}}}}}",
        f"output_dir={output}",
        f"sts={{a: {tmp_path / 'sts.tsv'}}}",
        "retrieval={}",
    ]
    leave(disk, num_bytes=0)
    is_one_line(capsys, code=evaluate.main(arguments), names=output)


def write_hundred(folder: Path) -> None:
    for number in range(100):
        write_atomic(folder / f"{number}", bytes(5000))


def write_directory(folder: Path) -> None:
    with committed_directory(folder / "whole") as temporary:
        (temporary / "large").write_bytes(bytes(100_000))


def write_pair_directory(folder: Path) -> None:
    pairs = (Pair(f"{n} {hash((n, 'x'))}", f"{hash((n, 'y'))}") for n in range(9000))
    write_pairs([(PairTask("x"), pairs)], output=folder / "pairs", sources=[], quarantine=[])


def write_mapped(folder: Path) -> None:
    """What a page without room would kill."""
    new_map(folder / "m.npy", shape=(100_000,), dtype="fp32")[:] = 1


WRITERS: dict[str, Callable[[Path], None]] = {
    "files": write_hundred,
    "a directory": write_directory,
    "pairs": write_pair_directory,
    "a mapped file": write_mapped,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kib", [0, 40])
def test_whatever_writes_names_the_full_disk(
    writer: str, kib: int, disk: Path, capsys: Said
) -> None:
    leave(disk, num_bytes=kib * 2**10)
    code = guarded(lambda: WRITERS[writer](disk))
    is_one_line(capsys, code=code, names=disk)


def test_words_of_a_library_are_told_from_others(
    disk: Path, tiny_model: Path, capsys: Said
) -> None:
    """The tokenizer's Rust has no errno to pass on."""
    leave(disk, num_bytes=2**13)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def save() -> None:
        tokenizer.save_pretrained(disk / "model")

    assert guarded(save) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "make room there" in said
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: print(1 / 0))
    assert full_disk(OSError(errno.EIO, "Input/output error", "f")) == ""


def test_a_stage_in_a_job_says_so_in_a_line(capsys: Said) -> None:
    """The scheduler's log has the traceback besides."""
    with pytest.raises(OSError, match="quota"), errors_as_lines():
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "runs/a")
    said = capsys.readouterr().err
    assert said.startswith("error: runs/a: Disk quota exceeded; make room there")

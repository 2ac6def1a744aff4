"""Inputs by address: shards of them are those of the same files here, to the byte."""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_scripts import shard_wikipedia
from tests.conftest import contents, refused
from tests.text.s3_server import serve
from toolkit.base.errors import BadInput, RunFailed
from toolkit.text.remote import RemoteFile, is_address, remote_files


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Three files of documents, of three kinds, one in a folder below."""
    folder = tmp_path / "files"
    (folder / "more").mkdir(parents=True)
    rows = [{"id": f"d{n}", "text": f"Document {n}. It has two sentences."} for n in range(40)]
    lines = "".join(json.dumps(row) + "\n" for row in rows[:20])
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    pq.write_table(pa.Table.from_pylist(rows[20:]), folder / "b.parquet")
    (folder / "more" / "Ä c.txt").write_text("A line.\nAnother line of text.\n")
    (folder / "notes.pdf").write_bytes(b"no input")
    (folder / "_SUCCESS").write_bytes(b"")
    return folder


@pytest.fixture
def memory(files: Path) -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(files), "/bucket", recursive=True)
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def shards_of(output: Path, *inputs: object) -> dict[str, bytes]:
    given = ["--input", *map(str, inputs), "--output", str(output)]
    assert shard_wikipedia.main(given) == 0
    return contents(output)


def test_shards_of_an_address_are_those_of_the_files_there(
    files: Path, memory: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = shards_of(tmp_path / "local", files)
    capsys.readouterr()
    assert shards_of(tmp_path / "folder", "memory://bucket") == local
    said = capsys.readouterr().out
    assert "memory://bucket: not read: .pdf 1, hidden 1 (notes.pdf, _SUCCESS)" in said
    assert shards_of(tmp_path / "scheme", f"file://{files}") == local
    pattern = "memory://bucket/*.jsonl.gz"
    some = shards_of(tmp_path / "some", pattern, "memory://bucket/b.parquet")
    assert some == shards_of(tmp_path / "both", files / "a.jsonl.gz", files / "b.parquet")
    copies = contents(tmp_path / "folder.inputs")
    assert copies["memory/bucket/b.parquet"] == (files / "b.parquet").read_bytes()
    assert len(copies) == 6 and not (tmp_path / "scheme.inputs").exists()


def test_what_was_copied_is_not_copied_again_until_it_changes(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    inner = type(memory).open

    def opening(self: Any, path: str, *arguments: Any, **others: Any) -> Any:
        opened.append(path)
        return inner(self, path, *arguments, **others)

    monkeypatch.setattr(type(memory), "open", opening)
    first = shards_of(tmp_path / "out", "memory://bucket")
    assert len(opened) == 3
    assert shards_of(tmp_path / "out", "memory://bucket") == first
    assert len(opened) == 3
    # A copy that is cut off is made again, and so is one of a file that has changed.
    copies = tmp_path / "out.inputs" / "memory" / "bucket"
    (copies / "b.parquet").write_bytes(b"short")
    assert shards_of(tmp_path / "out", "memory://bucket") == first
    assert len(opened) == 4
    memory.pipe("/bucket/more/Ä c.txt", b"A line.\nAnother line of TEXT.\n")
    memory.rm(["/bucket/notes.pdf", "/bucket/_SUCCESS"])  # of which a line would tell
    asked = ("--input", "memory://bucket", "--output", tmp_path / "out")
    capsys.readouterr()
    assert "made with other input" in refused(capsys, shard_wikipedia.main, *asked)
    assert (copies / "more" / "Ä c.txt").read_bytes().count(b"TEXT") == 1


def test_processes_that_come_together_copy_each_file_once(
    files: Path, memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, inner = list[str](), type(memory).open

    def opening(self: Any, path: str, *arguments: Any, **others: Any) -> Any:
        opened.append(path)
        time.sleep(0.2)  # so that the other comes meanwhile
        return inner(self, path, *arguments, **others)

    monkeypatch.setattr(type(memory), "open", opening)
    monkeypatch.setattr(shard_wikipedia, "POLL_S", 0.01)
    found: list[list[Path]] = []
    given = shard_wikipedia.parse_arguments(
        ["--input", "memory://bucket", "--output", str(tmp_path / "out")]
    )

    def process() -> None:
        paths, roots = shard_wikipedia._paths(given)
        found.append(paths)
        assert {*roots} == {tmp_path / "out.inputs" / "memory" / "bucket"}

    threads = [threading.Thread(target=process) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(opened) == 3 and len(found) == 3 and found[0] == found[1] == found[2]
    assert [path.read_bytes() for path in found[0][:2]] == [
        (files / name).read_bytes() for name in ("a.jsonl.gz", "b.parquet")
    ]
    assert not (tmp_path / "out.inputs" / "leases").exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://bucket/absent.jsonl", "no such file, and no folder with files of a known kind"),
        ("memory://bucket/notes.pdf", "notes.pdf: unknown kind of file"),
        ("memory://bucket/*.csv", "no such file, and no folder"),
        ("nothing://bucket/a.jsonl", "cannot be opened (Protocol not known: nothing)"),
        ("file:///absent.jsonl", "/absent.jsonl: no such file"),
    ],
)
def test_an_address_that_cannot_be_read_is_refused(
    address: str,
    message: str,
    memory: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ("--input", address, "--output", tmp_path / "out")
    assert message in refused(capsys, shard_wikipedia.main, *asked)
    assert not list(tmp_path.glob("out*"))


def test_pyarrow_reads_s3_where_fsspec_lacks_its_package(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a server on this machine; keys in an address are never shown."""

    def missing(address: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    local = shards_of(tmp_path / "local", files)
    with serve(files) as query:
        keyed = "s3://akey:asecret@bucket"
        assert shards_of(tmp_path / "s3", f"{keyed}/{query}") == local
        assert shards_of(tmp_path / "s3", f"{keyed}/{query}") == local
        asked = ("--input", f"{keyed}/absent/{query}", "--output", tmp_path / "out")
        message = refused(capsys, shard_wikipedia.main, *asked)
    assert "no such file" in message and "s3://bucket/absent/" in message
    assert "asecret" not in message
    assert not [c for c in contents(tmp_path / "s3.inputs").values() if b"asecret" in c]
    with pytest.raises(BadInput, match=r"Install s3fs to access S3, or: Unrecognized filesystem"):
        remote_files("nothing://bucket/x.jsonl")


def test_a_file_that_ends_too_early_is_not_taken(memory: Any, tmp_path: Path) -> None:
    (file,) = remote_files("memory://bucket/b.parquet")
    memory.pipe("/bucket/b.parquet", b"less")
    with pytest.raises(RunFailed, match=r"b\.parquet: gave 4 bytes of [0-9,]+; start again"):
        file.copy(tmp_path)
    memory.rm("/bucket/b.parquet")
    with pytest.raises(RunFailed, match=r"b\.parquet: .*; the same command goes on"):
        file.copy(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "bucket" in str(path)]


def test_a_place_is_never_outside_of_the_folder(memory: Any, tmp_path: Path) -> None:
    assert is_address("s3://a/b") and not is_address("a/b") and not is_address("C:/b")
    for path in ("/x/../../../y.jsonl", "../y.jsonl", "https://host/../../y.jsonl?a=../../b"):
        place = RemoteFile(memory, "https", path, size=None, stamp="").place(tmp_path / "in")
        assert place.is_relative_to(tmp_path / "in" / "https") and ".." not in place.parts
        assert place.name == "y.jsonl"

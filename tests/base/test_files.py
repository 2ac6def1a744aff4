"""Atomic files and committed directories."""

import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.base import files
from toolkit.base.errors import BadInput
from toolkit.base.files import (
    append_line,
    committed_directory,
    create_atomic,
    create_json,
    is_committed,
    newest_committed,
    read_json,
    read_json_lines,
    remove_committed,
    remove_temporaries,
    sha256_of,
    write_atomic,
    write_json,
)


class Crash(BaseException):
    """Ends a write the way a kill does."""


def test_write_atomic_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.txt"
    write_atomic(path, "old")
    with pytest.raises(TypeError):
        write_atomic(path, 3)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_content_is_on_the_disk_before_its_name_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut could leave the name with nothing behind it."""
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        calls.append(("rename", Path(source).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_atomic(tmp_path / "name", "content")
    (_, temporary), *_ = calls
    assert temporary.startswith(".name.")
    assert calls == [("fsync", temporary), ("rename", temporary), ("fsync", tmp_path.name)]


def test_a_directory_has_its_marker_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked: list[bool] = []
    rename = os.rename

    def renamed(source: Path, target: Path) -> None:
        marked.append(is_committed(Path(source)))
        rename(source, target)

    monkeypatch.setattr(os, "rename", renamed)
    with committed_directory(tmp_path / "whole") as folder:
        (folder / "file").write_text("content")
    assert marked == [True]


def test_committed_directory_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(Crash), committed_directory(target) as folder:  # noqa: PT012
        (folder / "half").write_text("x")
        raise Crash
    assert list(tmp_path.iterdir()) == []
    with committed_directory(target) as folder:
        (folder / "whole").write_text("x")
    assert is_committed(target)
    assert (target / "whole").read_text() == "x"


def test_an_empty_directory_is_taken_and_a_temporary_of_a_killed_writer_removed(
    tmp_path: Path,
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    with committed_directory(target) as folder:
        (folder / "new").write_text("y")
    assert sorted(p.name for p in target.iterdir()) == ["COMMITTED", "new"]
    (tmp_path / ".other.host.1.tmp").mkdir()
    (tmp_path / ".other.host.1.tmp" / "part").write_text("z")
    remove_temporaries(tmp_path)
    remove_committed(target)
    remove_committed(target)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(BadInput, match="not ours to replace"), committed_directory(tmp_path):
        pytest.fail("must not get here")
    assert (tmp_path / "thesis.tex").exists()


def commit(target: Path, content: str) -> None:
    with committed_directory(target) as folder:
        (folder / "file").write_text(content)


@pytest.mark.parametrize("moment", ["before it is filled", "before it is renamed"])
@pytest.mark.parametrize("equal", [True, False])
def test_the_first_of_two_writers_wins_and_the_other_is_told(
    moment: str, equal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one comes and goes between our look at the name and our rename."""
    target, rename = tmp_path / "out", os.rename
    theirs = "ours" if equal else "other"

    def quicker(*paths: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        other_process(target, theirs)
        rename(*paths)

    if moment == "before it is renamed":
        monkeypatch.setattr(os, "rename", quicker)
    caught = ""
    try:
        with committed_directory(target) as folder:
            (folder / "file").write_text("ours")
            if moment == "before it is filled":
                other_process(target, theirs)
    except BadInput as error:
        caught = str(error)
    assert (target / "file").read_text() == theirs
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert ("exists already with other content" in caught) is not equal


def other_process(target: Path, content: str) -> None:
    """As a thread, which has a temporary of its own too."""
    thread = threading.Thread(target=commit, args=(target, content))
    thread.start()
    thread.join()


def test_a_directory_that_is_there_is_made_again_only_with_the_same_content(
    tmp_path: Path,
) -> None:
    commit(tmp_path / "out", "first")
    (tmp_path / "out" / ".cache").mkdir()  # what readers leave there is no content
    commit(tmp_path / "out", "first")
    with pytest.raises(BadInput, match="with other content"):
        commit(tmp_path / "out", "second")
    assert (tmp_path / "out" / "file").read_text() == "first"


def test_newest_committed_ignores_what_is_not_whole(tmp_path: Path) -> None:
    for number, whole in ((1, True), (20, True), (100, False)):
        folder = tmp_path / f"step-{number:03d}"
        folder.mkdir()
        if whole:
            (folder / "COMMITTED").write_text("")
    assert newest_committed(tmp_path, "step-") == tmp_path / "step-020"
    assert newest_committed(tmp_path / "none", "step-") is None


def test_json_and_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": "é"})
    first = sha256_of(path)
    write_json(path, {"a": "é", "b": 1})
    assert sha256_of(path) == first
    path.write_text("{")
    with pytest.raises(BadInput, match="is not valid JSON"):
        read_json(path)
    with pytest.raises(BadInput, match="cannot be read"):
        read_json(tmp_path / "none.json")


def no_links(source: Path, target: Path) -> None:
    raise OSError(errno.EPERM, "Operation not permitted", str(source), None, str(target))


def linked_and_not_heard(source: Path, target: Path) -> None:
    """NFS: the answer to the first try was lost, and the second finds what the first has made."""
    real_link(source, target)
    real_link(source, target)


real_link = os.link
FILE_SYSTEMS: dict[str, Callable[[Path, Path], None]] = {
    "with hard links": real_link,
    "without hard links": no_links,
}


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_of_many_who_create_a_file_at_once_one_has_and_readers_see_it_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have written what they mean to create, and none has created it, when they go on."""
    monkeypatch.setattr(os, "link", FILE_SYSTEMS[kind])
    writers, rounds = 4, 25
    barrier, over = threading.Barrier(writers), threading.Event()
    won: list[tuple[int, int]] = []
    seen: list[str] = []

    def place(temporary: Path, path: Path) -> bool:
        barrier.wait(timeout=60)
        return real_place(temporary, path)

    real_place = files.place_new
    monkeypatch.setattr(files, "place_new", place)

    def create(writer: int) -> None:
        for number in range(rounds):
            if create_json(tmp_path / f"{number}.json", [writer] * 5000):
                won.append((number, writer))

    def read() -> None:
        while not over.is_set():
            seen.extend(path.read_text() for path in tmp_path.glob("[0-9]*.json"))

    threads = [threading.Thread(target=create, args=(writer,)) for writer in range(writers)]
    reader = threading.Thread(target=read)
    reader.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    reader.join()
    assert sorted(number for number, _ in won) == list(range(rounds))
    for number, writer in won:
        assert read_json(tmp_path / f"{number}.json") == [writer] * 5000
    assert {len(json.loads(text)) for text in seen} <= {5000}
    assert len(list(tmp_path.iterdir())) == rounds


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_a_file_that_is_there_is_not_created_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", FILE_SYSTEMS[kind])
    path = tmp_path / "new" / "file"
    assert create_atomic(path, "first")
    assert not create_atomic(path, "second")
    assert path.read_text() == "first"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_an_answer_that_the_network_lost_is_no_other_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", linked_and_not_heard)
    assert create_atomic(tmp_path / "file", "ours")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_whoever_was_killed_while_it_created_without_links_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(files, "TURN_S", 0.1)
    (tmp_path / ".file.turn").touch()
    with pytest.raises(BadInput, match=r"\.file\.turn: .*if nobody is, delete this file"):
        create_atomic(tmp_path / "file", "ours")
    assert [entry.name for entry in tmp_path.iterdir()] == [".file.turn"]


def test_a_disk_without_room_is_an_error_and_nobody_s_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left"):
        create_atomic(tmp_path / "file", "ours")
    assert list(tmp_path.iterdir()) == []


def test_no_line_of_others_is_lost_or_joined_with_a_cut_one(tmp_path: Path) -> None:
    path, writers, lines = tmp_path / "lines.jsonl", 4, 25
    path.write_text('{"half": ')
    threads = [
        threading.Thread(
            target=lambda n=number: [
                append_line(path, json.dumps({"at": [n, k]})) for k in range(lines)
            ]
        )
        for number in range(writers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row["at"] for row in read_json_lines(path)) == [
        [number, k] for number in range(writers) for k in range(lines)
    ]

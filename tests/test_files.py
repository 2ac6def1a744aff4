"""Atomic files and committed directories."""

from pathlib import Path

import pytest

from toolkit.files import (
    BadInput,
    committed_directory,
    is_committed,
    newest_committed,
    read_json,
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


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with committed_directory(target) as outer:
        (outer / "file").write_text("outer")
        inner = tmp_path / "inner"
        inner.mkdir()
        (inner / "file").write_text("inner")
        inner.rename(target)
        (target / "COMMITTED").write_text("")
    assert (target / "file").read_text() == "inner"


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

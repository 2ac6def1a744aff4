"""What is in a folder and is not read is told; nothing vanishes."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import run
from toolkit.base.errors import BadInput
from toolkit.text.folders import contents, counts_of, ending_of, overlap
from toolkit.text.sources import find_inputs, is_saved_dataset, survey

NOBODY = 65534


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"Some words about {name}.")
    return folder


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may enter every folder, so that permissions are tried as somebody else."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def public(tmp_path: Path) -> Iterator[Path]:
    """A folder that everybody may enter, as those of pytest may not be."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for place in (folder / "closed", folder / "blind"):
        if place.is_dir():
            place.chmod(0o755)
    shutil.rmtree(folder)


def test_folders_that_cannot_be_entered_are_counted(public: Path) -> None:
    fill(public, "a.txt", "closed/b.txt", "blind/c.txt")
    (public / "closed").chmod(0o000)
    (public / "blind").chmod(0o444)  # tells its names, and no more
    with as_nobody():
        found = survey([public], whole_files=True)
        with pytest.raises(BadInput, match=r"closed: cannot be read \(Permission denied\)"):
            survey([public / "closed"])
    assert [given.name for given in found.inputs] == ["a.txt"]
    counts = "not read: cannot be entered 1, cannot be reached 1"
    assert found.told == f"{counts} (closed, blind/c.txt)"


def test_all_that_is_passed_over_is_counted_by_reason_and_ending(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "a.txt", "sub/b.md", ".git/c.txt", ".d.txt", "_e.txt", "README")
    fill(folder, "1.pdf", "2.PDF", "sub/3.pdf", "4.docx", "x.tar.gz", "Mr. Smith's notes")
    fill(tmp_path / "elsewhere", "linked.txt", "not.txt")
    (folder / "link.txt").symlink_to(tmp_path / "elsewhere" / "linked.txt")
    (folder / "circle").symlink_to(folder)
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    (folder / "gone.txt").symlink_to(folder / "nowhere.txt")
    os.mkfifo(folder / "pipe.txt")
    (folder / os.fsdecode(b"\xff.odt")).write_bytes(b"")
    found = survey([folder], whole_files=True)
    assert [given.name for given in found.inputs] == ["a.txt", "link.txt", "sub/b.md"]
    wanted = {"broken link": 2, "linked folder": 1, "neither file nor folder": 1, ".pdf": 3}
    wanted |= {"no ending": 2, ".docx": 1, ".odt": 1, ".tar.gz": 1, "hidden": 3}
    assert counts_of(found.passed) == wanted
    assert list(counts_of(found.passed))[:4] == list(wanted)[:4]
    assert found.told.endswith(", .odt 1, .tar.gz 1, hidden 3 (gone.txt, loop.txt, circle, ...)")
    files, passed = contents(folder)
    everything = [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    inside_git = [folder / ".git" / "c.txt"]
    seen = {*files, *(one.path for one in passed)} - {folder / ".git"}
    assert seen == {*everything} - {*inside_git}


def test_a_folder_of_unknown_endings_is_refused_with_what_is_there(tmp_path: Path) -> None:
    fill(tmp_path / "in", "a.pdf", "b.pdf", "c.docx")
    with pytest.raises(BadInput) as refused:
        find_inputs([tmp_path / "in"], whole_files=True)
    said = "holds no file that can be read: .pdf 2, .docx 1 (a.pdf, b.pdf, c.docx); those that can"
    assert said in str(refused.value)
    assert ".txt, .md, .rst, .parquet, or with one of .gz" in str(refused.value)
    command = [sys.executable, "data_scripts/shard_wikipedia.py", "--whole-files", "--input"]
    assert said in run([*command, str(tmp_path / "in"), "--output", str(tmp_path / "o")], code=2)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.PDF", ".pdf"), ("a.tar.gz", ".tar.gz"), ("a", "no ending"), ("a. b c", "no ending")],
)
def test_endings(name: str, ending: str) -> None:
    assert ending_of(Path(name)) == ending


def test_names_stay_when_a_file_comes_elsewhere_in_the_folder(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "sub/deep/a.txt", "sub/deep/b.txt")
    before = {given.name for given in find_inputs([folder])}
    fill(folder, "c.txt")
    after = {given.name for given in find_inputs([folder])}
    assert before == {"sub/deep/a.txt", "sub/deep/b.txt"} == after - {"c.txt"}
    # Of several folders all names are below the one that they share, and so are different ones.
    fill(tmp_path / "other", "sub/deep/a.txt")
    both = [given.name for given in find_inputs([folder, tmp_path / "other"])]
    assert both == ["in/c.txt", "in/sub/deep/a.txt", "in/sub/deep/b.txt", "other/sub/deep/a.txt"]
    # As if the folder had been given, of whose files we were told.
    files = [folder / "sub" / "deep" / "a.txt"]
    assert [given.name for given in find_inputs(files, roots=[folder])] == ["sub/deep/a.txt"]


def test_an_output_in_the_folder_that_is_read_is_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "a.txt")
    (tmp_path / "link").symlink_to(folder)
    for output in (
        folder,
        folder / "out",
        tmp_path / "link" / "x" / "out",
        folder / "s" / ".." / "o",
    ):
        assert "lies in" in overlap(output, source=folder)
    for output in (tmp_path / "out", tmp_path / "in2", folder / ".cache" / "out"):
        assert overlap(output, source=folder) == ""
    assert overlap(folder / "out", source=folder / "a.txt") == ""
    command = [
        sys.executable,
        "data_scripts/shard_wikipedia.py",
        "--input",
        str(folder),
        "--output",
    ]
    said = run([*command, str(folder / "shards")], code=2)
    assert f"{folder / 'shards'}: lies in {folder}, which is read" in said
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt"]


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "dataset_dict.json"])
def test_one_file_of_a_data_set_makes_none(tmp_path: Path, name: str) -> None:
    folder = fill(tmp_path / "in", "a.txt", name)
    assert not is_saved_dataset(folder)
    assert [given.name for given in find_inputs([folder])] == ["a.txt"]

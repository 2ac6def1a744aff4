"""All that is in a folder: its files, and what is passed over, with the reason.

Knows folders, links and names. Refuses to know which files are inputs (`sources`).
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NO_ENTRY, NO_REACH = "cannot be entered", "cannot be reached"
LINKED_FOLDER, BROKEN_LINK, NO_FILE = "linked folder", "broken link", "neither file nor folder"
NO_ENDING, HIDDEN = "no ending", "hidden"
NUM_NAMED = 3
_ENDING = re.compile(r"\.\w{1,10}(?:\.(?:gz|bz2|zst|xz|zip))?$")


@dataclass(frozen=True)
class Passed:
    """What is not read, a file or a whole folder, and why. The reason of a file of unknown kind is
    its ending, such as `.pdf`."""

    path: Path
    reason: str


def contents(folder: Path) -> tuple[list[Path], list[Passed]]:
    """The files below a folder, in order, and what is passed over: hidden files and folders (those
    whose name begins with a dot), linked folders, which may lead in a circle, and what cannot be
    read. A link to a file is the file. Raises `OSError` if the folder itself cannot be entered."""
    files: list[Path] = []
    passed: list[Passed] = []
    ahead = [folder]
    while ahead:
        place = ahead.pop()
        try:
            with os.scandir(place) as scan:
                entries = list(scan)
        except OSError:
            if place == folder:
                raise
            passed.append(Passed(place, NO_ENTRY))
            continue
        for entry in entries:
            path = place / entry.name
            if entry.name.startswith("."):
                passed.append(Passed(path, HIDDEN))
            elif entry.is_dir(follow_symlinks=False):
                ahead.append(path)
            elif why := _problem(entry):
                passed.append(Passed(path, why))
            else:
                files.append(path)
    return sorted(files), sorted(passed, key=lambda one: one.path)


def _problem(entry: os.DirEntry[str]) -> str:
    """Why an entry that is no folder is no file that can be read; empty if it is one."""
    try:
        entry.stat()  # a folder may tell its names to those who may not enter it
        if entry.is_file():
            return ""
        return LINKED_FOLDER if entry.is_dir() else NO_FILE
    except OSError:
        return BROKEN_LINK if entry.is_symlink() else NO_REACH


def ending_of(path: Path) -> str:
    """The ending of a file's name in lower case, as `.pdf` or `.tar.gz`; `NO_ENDING` if it has
    none."""
    found = _ENDING.search(path.name.lower())
    return found[0] if found else NO_ENDING


def counts_of(passed: Sequence[Passed]) -> dict[str, int]:
    """How many are passed over for each reason: what somebody may have to mend comes first, then
    endings, the most frequent first, then what is hidden."""
    first = (NO_ENTRY, NO_REACH, BROKEN_LINK, LINKED_FOLDER, NO_FILE)

    def rank(reason: str) -> tuple[int, int, str]:
        place = first.index(reason) if reason in first else len(first) + (reason == HIDDEN)
        return place, -counts[reason], reason

    counts = Counter(one.reason for one in passed)
    return {reason: counts[reason] for reason in sorted(counts, key=rank)}


def told(passed: Sequence[Passed], *, below: Path) -> str:
    """One line for people: the number of each reason, and a few names."""
    counts = counts_of(passed)
    order = list(counts)
    some = sorted(passed, key=lambda one: (order.index(one.reason), one.path))[:NUM_NAMED]
    names = ", ".join(name_below(one.path, below) for one in some)
    more = ", ..." if len(passed) > NUM_NAMED else ""
    return f"{', '.join(f'{reason} {count:,}' for reason, count in counts.items())} ({names}{more})"


def name_below(path: Path, folder: Path) -> str:
    """The path relative to a folder, as text: a name on Linux may be any bytes, and what is not
    UTF-8 is written as \\xff."""
    return os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")


def overlap(output: Path, *, source: Path) -> str:
    """What is wrong where an output lies in the folder that it is made from; empty if it does not.
    The next run would read it. What is hidden there is not read."""
    place, folder = output.resolve(), source.resolve()
    if not folder.is_dir() or not place.is_relative_to(folder):
        return ""
    if any(part.startswith(".") for part in place.relative_to(folder).parts):
        return ""
    return (
        f"{output}: lies in {source}, which is read, so that the next run would take its files for "
        "documents; give another directory"
    )

"""What ends a run in one line: the errors of the project, and what a full disk raises.

Knows what a person can mend. Refuses to know where an error is shown and which exit code it gets.
"""

import difflib
import errno
import os
from collections.abc import Iterable

_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "disk quota exceeded"}
ROOM = "; make room there, then the same command goes on with what is done"


class Ending:
    """What ends a run in one line. `agreed`: every rank ends with it by itself, so none is lost;
    `quiet`: another rank says the line."""

    agreed = False
    quiet = False


class RunFailed(Ending, RuntimeError):
    """A run that cannot go on; the message says why, and a traceback would say nothing more."""


class NodeFault(RunFailed):
    """What this node cannot do, and another could: a device that is broken."""


class BadInput(Ending, ValueError):
    """What a person gave cannot be used; the message is one line that says what would do.

    Doors print it and exit with code 2. Anything else that is raised is a defect of ours.
    """


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """The end of an error about a mistyped word: the valid one that is closest to it, or, of a key
    without its section, the one that ends like it. Empty where none is close."""
    names = list(valid)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.7)
    near += [name for name in names if name.endswith(f".{word}")]
    return f"; did you mean {near[0]!r}?" if near else ""


def full_disk(error: BaseException | None) -> str:
    """What to tell of an error that a full disk or a quota is behind, whoever raised it; empty for
    any other."""
    while error is not None:
        if is_full(error):
            told = " ".join(str(error).split())[:200]
            if isinstance(error, OSError) and error.filename and error.errno:
                told = f"{error.filename}: {os.strerror(error.errno)}"
            return f"{told}{ROOM}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""


def is_full(error: BaseException) -> bool:
    """Whether a full disk or a quota has raised this very error. Libraries in Rust and C++
    (tokenizers, faiss, torch) pass on the words alone."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(words in str(error).lower() for words in _FULL.values())

"""What ends a run with one line: the errors of the project, and those that a full disk raises.

Knows what a person can fix. Refuses to know where an error is shown and which exit code it gets.
"""

import difflib
import errno
import os
from collections.abc import Iterable

_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "disk quota exceeded"}
ROOM = "; make room there, then the same command goes on with what is done"


class Ending:
    """An error that ends a run with one line. `agreed`: every rank raises it, so no rank waits for
    another. `quiet`: another rank prints the line."""

    agreed = False
    quiet = False


class RunFailed(Ending, RuntimeError):
    """A run cannot go on; the message says why, and a traceback would add nothing."""


class NodeFault(RunFailed):
    """This node cannot do the work, but another node could: a device is broken, for example."""


class BadInput(Ending, ValueError):
    """What the user gave cannot be used; the message is one line that says what would be valid.

    Doors print it and exit with code 2. Any other exception is a defect of ours.
    """


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """The end of an error message about a mistyped word: it names the closest valid word or, for a
    key given without its section, the valid key whose end is closest. Empty if nothing is close."""
    names = list(valid)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.7)
    # Two letters that are exchanged are a third of a short word, and so not close.
    near += [name for name in names if sorted(name) == sorted(word)]
    ends = {name.rpartition(".")[2]: name for name in reversed(names)}  # the first of a kind wins
    near += [ends[end] for end in difflib.get_close_matches(word, ends, n=1, cutoff=0.7)]
    return f"; did you mean {near[0]!r}?" if near else ""


def full_disk(error: BaseException | None) -> str:
    """The line to print for an error whose cause is a full disk or a quota, whichever library
    raised it; empty for any other error."""
    while error is not None:
        if is_full(error):
            message = " ".join(str(error).split())[:200]
            if isinstance(error, OSError) and error.filename and error.errno:
                message = f"{error.filename}: {os.strerror(error.errno)}"
            return f"{message}{ROOM}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""


def is_full(error: BaseException) -> bool:
    """Whether this very error comes from a full disk or a quota. Libraries written in Rust and C++
    (tokenizers, faiss, torch) pass on only the words, without the error number."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(words in str(error).lower() for words in _FULL.values())

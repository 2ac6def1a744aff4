"""Runs pytest again and again, each time in a fork of a process that has imported the libraries.

    python -m tests.mutants.runner      (started by `bench`, in its copy)

A fresh interpreter would spend most of a fault's time on importing torch, transformers and
deepspeed. Nothing of the toolkit is imported here: each child imports what is planted. A request is
a line of JSON ({"arguments": ..., "output": FILE}). One line answers with the child's process
number when it begins, and another with its exit code when it has ended.
"""

import contextlib
import gc
import importlib
import json
import os
import sys

from tests.forking.server import MODULES

OF_THE_TESTS = ("pytest", "hypothesis", "xdist.plugin", "pytest_timeout")


def main() -> int:
    """Serve until standard input ends; in a child, run pytest. Returns the exit code."""
    # Only answers go to standard output: what libraries print at import must not mix with them.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for name in (*OF_THE_TESTS, *MODULES):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a child must not copy every page
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            answers.close()
            return become_pytest(asked["arguments"], output=asked["output"])
        print(child, file=answers)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers)
    return 0


def become_pytest(arguments: list[str], *, output: str) -> int:
    """Run pytest in a session of its own, which can be killed with all that it starts."""
    os.setsid()
    for number, (path, how) in enumerate(
        ((os.devnull, os.O_RDONLY), (output, os.O_WRONLY), (output, os.O_WRONLY | os.O_APPEND))
    ):
        file = os.open(path, how | (os.O_APPEND if how else 0))
        os.dup2(file, number)
        os.close(file)
    import pytest

    return int(pytest.main(arguments))


if __name__ == "__main__":
    sys.exit(main())

"""Encoding workers as processes that begin at once, to be killed.

Knows processes and the shim `killer.c`. Refuses to know what a worker leaves behind.

Run as a program, it imports everything once. A JSON line on standard input forks a worker, and the
answer is its process id; `{"wait": pid}` answers its wait status.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.faults.killer import ask, import_all, served
from toolkit.base.files import write_atomic


class Nursery:
    """Starts workers; their output goes to `log`."""

    def __init__(self, process: "subprocess.Popen[str]", *, log: Path) -> None:
        self._process, self.log = process, log
        self.alive: list[int] = []

    def start(
        self,
        arguments: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        call: int | None = None,
        watched: Path | None = None,
    ) -> int:
        """The process id of a worker. With the shim: killed before its `call`-th file-system call
        under `watched` (0: only counted)."""
        asked = {
            "arguments": list(arguments),
            "environ": dict(environ or {}),
            "log": str(self.log),
            "call": call,
            "watched": str(watched),
        }
        pid = int(ask(self._process, asked))
        self.alive.append(pid)
        return pid

    def wait(self, pid: int) -> int:
        """Its exit code; negative if a signal ended it."""
        code = os.waitstatus_to_exitcode(int(ask(self._process, {"wait": pid})))
        self.alive.remove(pid)
        return code

    def kill(self, pid: int) -> None:
        """SIGKILL, and wait for it."""
        os.kill(pid, signal.SIGKILL)
        self.wait(pid)

    def calls(self) -> list[str]:
        """The lines of the shim's trace, of the worker that was watched last."""
        return Path(f"{self.log}.trace").read_text().splitlines()


@contextlib.contextmanager
def nursery(log: Path, *, library: Path | None = None) -> Iterator[Nursery]:
    """A `Nursery`, with the shim if its `library` is given; what it has started ends with it."""
    with served("tests.faults.encoders", library=library) as process:
        found = Nursery(process, log=log)
        try:
            yield found
        finally:
            for pid in list(found.alive):
                found.kill(pid)


def _serve() -> None:
    import toolkit.encode
    import toolkit.encoding.encoder
    import toolkit.encoding.pipeline
    import toolkit.parallel.comm

    assert toolkit.encode
    # Answers alone go to the pipe: whatever is printed while importing must not be taken for one.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        modules = Path(asked.get("log", ".") + ".modules")
        if modules.is_file():
            import_all(modules.read_text().split())
        if "wait" in asked:
            print(os.waitpid(asked["wait"], 0)[1], file=answers, flush=True)
            continue
        child = os.fork()
        if not child:
            _be_the_worker(asked)
        print(child, file=answers, flush=True)


def _be_the_worker(asked: dict[str, Any]) -> NoReturn:
    code = 70
    try:
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(log, number)
        import torch

        from toolkit import encode

        torch.set_num_threads(1)
        os.environ |= asked["environ"]
        if asked["call"] is not None:
            shim = ctypes.CDLL(None)
            trace = os.fsencode(asked["log"] + ".trace")
            shim.killer_arm(os.fsencode(asked["watched"]), ctypes.c_long(asked["call"]), trace)
        code = encode.main(asked["arguments"])
        if code == 0:
            write_atomic(Path(asked["log"] + ".modules"), "\n".join(list(sys.modules)))
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()

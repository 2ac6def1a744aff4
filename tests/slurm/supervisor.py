"""Starts processes and ends all that came of them, even when whoever asked is killed.

Knows process ids. Refuses to know what the processes are.

Run as a program beside pytest: a JSON list a line on standard input, `[log file, command, ...]`,
is answered with the process id. It is told to end by the end of its standard input, which also
comes when pytest dies of SIGKILL. As the "child subreaper" it inherits the orphans of its
children, such as slurmstepd, which leaves slurmd: whatever is still running is its descendant and
nobody else's, so that all of it, and nothing else, can be ended by process id.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.used import tell

PR_SET_CHILD_SUBREAPER = 36


def _supervise(folder: Path) -> None:
    """Serve standard input; at its end, end all descendants and remove the folder."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # The default action would leave the daemons behind; this way a SIGTERM reaches `finally`.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    threading.Thread(target=_reap, daemon=True).start()
    try:
        for line in sys.stdin:
            log, *command = json.loads(line)
            with open(log, "ab") as output:
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
                )
            print(child.pid, flush=True)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # Again and again: killing a slurmstepd makes its tasks our children.
        while found := descendants(os.getpid()):
            for pid in found:
                kill(pid)
            time.sleep(0.05)
        shutil.rmtree(folder, ignore_errors=True)


def _reap() -> None:
    """Collect the orphans that a subreaper inherits; without it they would stay as zombies."""
    while True:
        try:
            os.waitpid(-1, 0)
            tell()
        except ChildProcessError:
            time.sleep(0.1)


def descendants(root: int) -> list[int]:
    """The living processes below a process."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (parent := parent_of(int(entry))):
            children.setdefault(parent, []).append(int(entry))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def parent_of(pid: int) -> int | None:
    """The parent's process id; None when the process is gone or only waits to be reaped."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state in "ZX" else int(parent)


def proc_parts(pid: int, file: str) -> list[bytes]:
    """The parts of /proc/PID/environ or cmdline; empty parts when the process is gone."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes().split(b"\0")
    except OSError:
        return [b""]


def kill(pid: int) -> None:
    """SIGKILL, if the process still exists."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _supervise(Path(sys.argv[1]))

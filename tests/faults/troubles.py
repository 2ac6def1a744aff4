"""What a rank can get into: each happens at the start of a step's backward pass, or of its reading.

Knows processes, disks and clocks. Refuses to know who notices. The file `trouble` of the folder
tells when it happened, in seconds of the monotonic clock.
"""

import collections
import contextlib
import ctypes
import errno
import itertools
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from toolkit.cluster.watchdog import Phase, Watchdog

STEP = 6  # after the checkpoints of 2 and 4 and a step more, before that of 6
Trouble = Callable[[int, Path], None]  # (step, run directory), called at every step


def at_step(action: Callable[[], object]) -> Trouble:
    """A trouble of one moment."""

    def trouble(step: int, _run_dir: Path) -> None:
        if step == STEP:
            action()

    return trouble


def sent(number: signal.Signals) -> Trouble:
    """A signal to this process."""
    return at_step(lambda: os.kill(os.getpid(), number))


def failing(names: str, part: str, error: int, *, until: int) -> Trouble:
    """File-system calls fail from STEP until another step."""

    def trouble(step: int, run_dir: Path) -> None:
        if step in (STEP, until):
            arguments = [os.fsencode(text) for text in (str(run_dir), names, part)]
            ctypes.CDLL(None).killer_fail(*arguments, error if step == STEP else 0)

    return trouble


def fail() -> None:
    """As a defect of ours, or a library's."""
    raise ValueError("a loss that nobody understands")


def hold_the_lock() -> None:
    """Forever in a library that does not release Python's lock."""
    collections.deque(itertools.repeat(0), maxlen=0)


def crash() -> None:
    """Read where nothing is."""
    ctypes.string_at(0)


def fill(step: int, run_dir: Path) -> None:
    """Have no byte left on the file system of a run directory, for good."""
    if step == STEP:
        with (
            (run_dir.parent / "ballast").open("wb", buffering=0) as ballast,
            contextlib.suppress(OSError),
        ):
            while True:
                ballast.write(bytes(4096))


def fill_for_a_while(step: int, run_dir: Path) -> None:
    """Until a step after the next save."""
    fill(step, run_dir)
    if step == STEP + 2:
        (run_dir.parent / "ballast").unlink()


def make_read_only(step: int, run_dir: Path) -> None:
    """As a file system does whose disk fails."""
    if step == STEP:
        subprocess.run(["mount", "-o", "remount,ro", str(run_dir.parent)], check=True)


def move_clock(step: int, _run_dir: Path) -> None:
    """A day ahead, then two days back."""
    if step in (STEP, STEP + 2):
        days = 1 if step == STEP else -1
        ctypes.CDLL(None).killer_move_clock(ctypes.c_long(days * 86400))


def be_slow(step: int, _run_dir: Path) -> None:
    """Slower than all others, and not lost."""
    if step >= STEP:
        time.sleep(1.5)


WRITES = " write create mkdir "
TROUBLES: dict[str, Trouble] = {
    "exception": at_step(fail),
    "SIGKILL": sent(signal.SIGKILL),
    "SIGTERM": sent(signal.SIGTERM),
    "SIGINT": sent(signal.SIGINT),
    "SIGSTOP": sent(signal.SIGSTOP),
    "segfault": at_step(crash),
    "abort": at_step(os.abort),
    "GIL held": at_step(hold_the_lock),
    "stuck while reading": at_step(lambda: time.sleep(1000)),
    "stuck while others wait": at_step(lambda: time.sleep(1000)),
    "slow rank": be_slow,
    "disk full, then not": fill_for_a_while,
    "disk full": fill,
    "quota": failing(WRITES, "/checkpoints/", errno.EDQUOT, until=STEP + 2),
    "disk full at the last rename": failing(
        " rename ", "/checkpoints/step-", errno.ENOSPC, until=STEP + 2
    ),
    "read-only file system": make_read_only,
    "clock jumps": move_clock,
}


def expect(name: str, *, run_dir: Path, folder: Path) -> None:
    """Get into this trouble while training."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    enter = Watchdog.enter
    where = "data" if name == "stuck while reading" else "backward"

    def enter_and_suffer(self: Watchdog, phase: Phase, *, step: int) -> None:
        enter(self, phase, step=step)
        if phase == where:
            if step == STEP:
                (folder / "trouble").write_text(str(time.monotonic()))
            TROUBLES[name](step, run_dir)

    Watchdog.enter = enter_and_suffer  # type: ignore[method-assign]

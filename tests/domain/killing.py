"""A pipeline on this machine that is killed in one of its stages, with all that it has started.

Knows processes, what the launcher prints and where a stage writes. Refuses to know what a stage
leaves behind.
"""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.forking.start import environ_of_starts, forked_python
from tests.slurm.supervisor import descendants, kill, parent_of, proc_parts
from toolkit.base.layout import LOG_DIR
from toolkit.runs.launched import read_launched

MARK = "TOOLKIT_TEST_KILLED_RUN"
DEADLINE_S = 900.0


class Killer:
    """Launches the pipeline `folder/run` in a folder, and kills it at moments that are drawn from
    the seed. `told` says at which."""

    def __init__(self, command: Sequence[str], *, folder: Path, whole: Path, seed: int) -> None:
        """`command` is what follows the interpreter; `whole` a run of it that nobody has killed."""
        self._command, self._folder, self._whole = [forked_python(), *command], folder, whole
        self._log = folder / "log"
        self._rng = random.Random(seed)
        self.told: list[str] = []

    def kill_in(self, stage: str) -> None:
        """Launch, and kill everything at a moment of the time that the stage took in the whole run.
        Where it is quicker now, its output is removed, and the moment sought in half of that time.
        """
        most_s = _seconds(self._whole / LOG_DIR / stage)
        while True:
            wait_s = self._rng.uniform(0, most_s)
            if self._was_killed_in(stage, wait_s=wait_s):
                self.told.append(f"{stage} after {wait_s:.2f} of {most_s:.2f} s")
                return
            self._remove(stage)
            most_s /= 2

    def _remove(self, stage: str) -> None:
        for one in read_launched(self._folder / "run"):
            if one.name == stage:
                shutil.rmtree(one.output, ignore_errors=True)

    def _was_killed_in(self, stage: str, *, wait_s: float) -> bool:
        before = {os.getpid(), *descendants(os.getpid())}
        mark = f"{os.getpid()}-{time.monotonic_ns()}"
        with self._log.open("wb") as log:
            launched = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env={**environ_of_starts(), MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + DEADLINE_S
            while self._stage_now() != stage:
                assert launched.poll() is None, self.said()
                assert time.monotonic() < deadline, self.said()
                time.sleep(0.02)
            moment = time.monotonic() + wait_s
            while time.monotonic() < moment and self._stage_now() == stage:
                time.sleep(0.02)
            is_over = launched.poll() is not None
        finally:
            kill_all(f"{MARK}={mark}", before=before)
            launched.wait()
        return not is_over and self._stage_now() == stage

    def said(self) -> str:
        """What the last launch printed."""
        return self._log.read_text(errors="replace")

    def _stage_now(self) -> str:
        heads = [line for line in self.said().splitlines() if line.startswith("[")]
        return heads[-1].partition("] ")[2] if heads else ""


def _seconds(logs: Path) -> float:
    """What a job took, from its submission to its result."""
    begin, end = (
        next(logs.glob(f"*_{name}.pkl")).stat().st_mtime for name in ("submitted", "result")
    )
    return end - begin


def kill_all(mark: str, *, before: set[int]) -> None:
    """Kill every process with this mark in its environment, and all that came below this one since
    `before`: a fork (tests/forking) has the environment of its server. Ends when none is left."""
    while found := _marked(mark.encode()) | (set(descendants(os.getpid())) - before):
        for pid in found:
            kill(pid)
        time.sleep(0.01)


def _marked(mark: bytes) -> set[int]:
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return {pid for pid in numbers if mark in proc_parts(pid, "environ") and parent_of(pid)}

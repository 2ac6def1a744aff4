"""Signals that tell a job to go: remembered, acted upon at a step boundary, then the job requeued.

Knows signals, SLURM's requeue and submitit's handler. Refuses to know what is saved.
A handler here only sets a flag: saving a partitioned model is collective, and no collective can be
started from a signal handler of one rank.
"""

import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)  # not USR1: NCCL catches it
REQUEUE_WAIT_S = 60.0
INTERRUPTED = 75  # EX_TEMPFAIL: saved before its end; the same command goes on


class StopSignal:
    """While entered, USR2 and TERM set `received` instead of ending the process."""

    def __init__(self) -> None:
        self.received = False
        self._wants_requeue = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.received = True
        self._wants_requeue |= number == signal.SIGUSR2

    def leave(self, environ: Mapping[str, str], *, leads: bool) -> None:
        """End the process after the save; the leading rank has a signalled SLURM job requeued.

        TERM alone is no wish to come back: scancel sends it, and a preemption requeues by itself.
        """
        if leads and self._wants_requeue:
            before = self._previous[signal.SIGUSR2]
            job = environ.get("SLURM_JOB_ID")
            if callable(before):
                before(signal.SIGUSR2, None)  # submitit's: it records the restart, requeues, exits
            elif job and shutil.which("scontrol"):
                print(f"saved; asking SLURM to requeue job {job}", flush=True)
                subprocess.run(["scontrol", "requeue", job], check=False)
        if self._wants_requeue and "SLURM_JOB_ID" in environ:
            # A rank that exits now ends the job before rank 0 has had it requeued.
            time.sleep(REQUEUE_WAIT_S)
        raise SystemExit(INTERRUPTED)

"""Signals that tell a job to go: remembered, acted upon at a step boundary, then the job requeued.

Knows signals, SLURM's requeue and submitit's handler. Refuses to know what is saved.
A handler here only sets a flag: saving a partitioned model is collective, and no collective can be
started from a signal handler of one rank.
"""

import math
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from toolkit.base.console import say
from toolkit.base.errors import BadInput, Ending
from toolkit.cluster.exclusion import exclusion_command

DEFAULT_SIGNAL = "USR2"  # not USR1: NCCL catches it
SIGNAL_VARIABLE = "TOOLKIT_STOP_SIGNAL"
CHAIN_VARIABLE = "TOOLKIT_CHAIN"  # jobs that wait for one another, where requeueing is forbidden
MARGIN_S = 120.0  # before the job's end; at most a tenth of its time
REQUEUE_WAIT_S = 60.0
INTERRUPTED = 75  # EX_TEMPFAIL: saved before its end; the same command goes on


class StopSignal:
    """While entered, the stop signals (USR2, which the launcher and the scripts ask SLURM for, and
    what TOOLKIT_STOP_SIGNAL names) and TERM make `received` true instead of ending the process; so
    does the end of a SLURM job's time, for sites that send no signal. However many come, it is the
    same wish. `avoid` are nodes that the next start had better do without.

    Raises `BadInput` for a signal that is none.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        names = (environ.get(SIGNAL_VARIABLE, DEFAULT_SIGNAL), DEFAULT_SIGNAL)
        self._stops = {_signal_of(name) for name in names}
        self._told = False
        self._wants_requeue = False
        self.avoid: Sequence[str] = ()
        self._deadline = time.monotonic() + seconds_to_stop(environ, now=time.time())
        self._previous: dict[int, Any] = {}

    @property
    def received(self) -> bool:
        """Whether the run is to save and go."""
        if not self._told and time.monotonic() >= self._deadline:
            self._told = self._wants_requeue = True
        return self._told

    def __enter__(self) -> Self:
        for number in {*self._stops, signal.SIGTERM}:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Ending) and error.agreed:
            return  # the first rank that ends has TERM sent to the others: see door.end_with
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._told = True
        self._wants_requeue |= number in self._stops

    def leave(self, environ: Mapping[str, str], *, leads: bool) -> None:
        """End the process after the save; the leading rank has a signalled SLURM job requeued.

        TERM alone is no wish to come back: scancel sends it, and a preemption requeues by itself.
        In a chain the next job is waiting already.
        """
        requeue = self._wants_requeue and not _is_chained(environ)
        if leads and self._wants_requeue and self.avoid and (avoid := exclusion_command(environ)):
            # It must outlive the TERM with which the job's end begins.
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            subprocess.Popen([*avoid, *self.avoid], start_new_session=True)
        if leads and requeue:
            theirs = [number for number in self._stops if callable(self._previous[number])]
            if theirs:  # submitit's: it records the restart, requeues, exits
                self._previous[theirs[0]](theirs[0], None)
            elif command := requeue_command(environ):
                say(f"saved; asking SLURM to requeue: {' '.join(command)}")
                subprocess.run(command, check=False)
        if requeue and "SLURM_JOB_ID" in environ:
            # A rank that exits now ends the job before rank 0 has had it requeued.
            time.sleep(REQUEUE_WAIT_S)
        raise SystemExit(INTERRUPTED)


def requeue_command(environ: Mapping[str, str]) -> list[str]:
    """What has this SLURM job start again; empty outside of one, and in a chain of jobs, where the
    next is waiting already."""
    job = environ.get("SLURM_JOB_ID")
    if job and "SLURM_ARRAY_TASK_ID" in environ:
        # The last task of an array has the array's own number, which stands for all of them.
        job = f"{environ.get('SLURM_ARRAY_JOB_ID', job)}_{environ['SLURM_ARRAY_TASK_ID']}"
    if not job or _is_chained(environ) or not shutil.which("scontrol"):
        return []
    return ["scontrol", "requeue", job]


def _is_chained(environ: Mapping[str, str]) -> bool:
    return environ.get(CHAIN_VARIABLE, "") not in ("", "0")


def seconds_to_stop(environ: Mapping[str, str], *, now: float) -> float:
    """Until a SLURM job should save and go, at `now` (seconds since 1970); infinite outside."""
    try:
        start, end = (float(environ[f"SLURM_JOB_{name}_TIME"]) for name in ("START", "END"))
    except (KeyError, ValueError):
        return math.inf
    return max(0.0, end - min(MARGIN_S, (end - start) / 10) - now)


def _signal_of(name: str) -> signal.Signals:
    try:
        return signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
    except KeyError as error:
        raise BadInput(f"{SIGNAL_VARIABLE}={name!r}: no signal; write USR2, or HUP") from error

"""Signals that tell a job to stop: remembered, acted on between two steps; then a requeue.

Knows signals, SLURM's requeue and submitit's handler. Refuses to know what is saved. A handler here
only sets a flag: saving a partitioned model is collective, and one rank cannot start a collective
from its signal handler.
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
CHAIN_VARIABLE = "TOOLKIT_CHAIN"  # set in jobs that wait for one another instead of being requeued
MARGIN_S = 120.0  # stop this long before the job's time limit, or a tenth of it if that is less
REQUEUE_WAIT_S = 60.0
INTERRUPTED = 75  # EX_TEMPFAIL: saved before the end; the same command continues the run


class StopSignal:
    """While entered, the stop signals and TERM make `received` true instead of ending the process.
    Stop signals are USR2, which the launcher and the scripts ask SLURM to send, and the one that
    TOOLKIT_STOP_SIGNAL names. For sites that send no signal, `received` also becomes true shortly
    before the time limit of the SLURM job. A second signal changes nothing. `avoid` names nodes
    that the next start should leave out.

    Raises `BadInput` if TOOLKIT_STOP_SIGNAL names no signal.
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
        """Whether the run should save and stop."""
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
            return  # stay deaf to the TERM that srun sends when the first rank ends: door.end_with
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._told = True
        self._wants_requeue |= number in self._stops

    def leave(self, environ: Mapping[str, str], *, leads: bool) -> None:
        """End the process after the save. If a stop signal came, the leading rank first asks SLURM
        to requeue the job.

        TERM alone requests no requeue: scancel sends it, and a preemption requeues by itself. In a
        chain of jobs the next job is waiting already.
        """
        requeue = self._wants_requeue and not _is_chained(environ)
        if leads and self._wants_requeue and self.avoid and (avoid := exclusion_command(environ)):
            # The child inherits the blocked signal, so that it outlives the TERM that SLURM sends
            # to all processes when the job ends.
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            subprocess.Popen([*avoid, *self.avoid], start_new_session=True)
        if leads and requeue:
            theirs = [number for number in self._stops if callable(self._previous[number])]
            if theirs:  # submitit's handler, which records the restart, requeues and exits
                self._previous[theirs[0]](theirs[0], None)
            elif command := requeue_command(environ):
                say(f"saved; asking SLURM to requeue: {' '.join(command)}")
                subprocess.run(command, check=False)
        if requeue and "SLURM_JOB_ID" in environ:
            # If this rank exited now, the job would end before rank 0 has requeued it.
            time.sleep(REQUEUE_WAIT_S)
        raise SystemExit(INTERRUPTED)


def requeue_command(environ: Mapping[str, str]) -> list[str]:
    """The command that requeues this SLURM job; empty outside a SLURM job, and in a chain of jobs,
    where the next job is waiting already."""
    job = environ.get("SLURM_JOB_ID")
    if job and "SLURM_ARRAY_TASK_ID" in environ:
        # SLURM_JOB_ID of an array's last task is the array's own number, which means all tasks.
        job = f"{environ.get('SLURM_ARRAY_JOB_ID', job)}_{environ['SLURM_ARRAY_TASK_ID']}"
    if not job or _is_chained(environ) or not shutil.which("scontrol"):
        return []
    return ["scontrol", "requeue", job]


def _is_chained(environ: Mapping[str, str]) -> bool:
    return environ.get(CHAIN_VARIABLE, "") not in ("", "0")


def seconds_to_stop(environ: Mapping[str, str], *, now: float) -> float:
    """Seconds from `now` (seconds since 1970) until a SLURM job should save and stop; infinite
    outside a SLURM job."""
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

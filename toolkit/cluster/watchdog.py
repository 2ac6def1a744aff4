"""A heartbeat per rank: a dead or stalled rank ends the whole job, with one line that names it.

Beside each training process runs a small process, its monitor (`toolkit.cluster.monitor`). They
share a page of memory, in which the training process says where it is and a thread of it beats, and
a socket. When a rank is lost, rank 0's monitor prints the line, and every monitor ends its own
process: it is told to print its stacks and exit with code 70; a second later a signal has the
stacks printed from outside; a second after that it is killed. So exit codes are 70, or -9 where
Python no longer runs; a rank that fails with an error keeps its own.

A rank that is killed, hangs or disappears may do better elsewhere: then a command is run besides,
such as one that has the job requeued, and one that has it leave out the node. An error of a rank
would come again: it is not, but for a `NodeFault`.

Knows what counts as lost, and what a training process does about it, on Linux. Refuses to know what
a step is. `kill -QUIT` prints the stacks of a watched rank at any time, and does not disturb it.
"""

import contextlib
import dataclasses
import faulthandler
import json
import math
import mmap
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from toolkit.base.console import say_beside
from toolkit.base.errors import Ending, NodeFault

WATCHDOG_EXIT = 70  # EX_SOFTWARE: ended because a rank is lost, this one or another
Phase = Literal["load", "data", "backward", "step", "evaluate", "save", "export"]
PHASES: tuple[Phase, ...] = get_args(Phase)  # in the order of a step

CUT_INTERVALS, CUT_S = 4.0, 3.0  # without a word of a monitor; a new one needs a moment
SETTLE_S = 1.0  # an error may be the consequence of a death that is not yet reported
VERDICT_S = 15.0  # so long a failing rank waits for the line: its exit alarms the launcher
MAX_RESTARTS = 3  # of a monitor
MAX_MESSAGE = 8192
STEP, PHASE, ENTERED, BEAT = range(4)  # places in the shared page, 8 bytes each
BYE, HEARD, OVER, END = b"bye", b"heard", b"over", b"end"  # between a process and its monitor
NODE = b"node:"  # begins what a process says of its node
# Schedulers and terminals signal whole process groups: what the training process acts on, a monitor
# is started with blocked.
_NOT_FOR_MONITORS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP),
)
_STDERR = 2  # not sys.stderr, which a test runner or a notebook replaces
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from toolkit.cluster import monitor; monitor.main(sys.argv[2])"
)


@dataclasses.dataclass(frozen=True)
class Job:
    """What all ranks agree on; rank 0's monitor listens on UDP port `port` of `address`, and runs
    the command `on_loss`, and at the same time `on_lost_node` with the host appended that the lost
    rank was on, unless they are empty. `heartbeats` is a file for people that it writes. A `name`
    that no other job on this port has, and no former life of this one, keeps their last words out.
    """

    world_size: int
    address: str
    port: int
    interval_s: float = 5.0
    stall_s: float = 1800.0
    on_loss: Sequence[str] = ()
    on_lost_node: Sequence[str] = ()
    heartbeats: str = ""
    name: str = ""

    def is_cut(self, unheard_s: float) -> bool:
        """Whether a monitor that long unheard is gone."""
        return unheard_s > max(CUT_INTERVALS * self.interval_s, CUT_S)


@dataclasses.dataclass
class State:
    """What a monitor says about its rank. `fault` is what happened to it, as a line; it is
    `certain` where no other rank can have caused it. `left`: there is nothing to watch any more.
    `log` is the file that it prints into, if it is one."""

    world_size: int
    rank: int
    host: str
    pid: int = 0
    step: int = 0
    phase: int = 0
    entered: int = 0
    fault: str = ""
    certain: bool = False
    left: bool = False
    job: str = ""
    log: str = ""

    @property
    def name(self) -> str:
        """Which rank."""
        return f"rank {self.rank} on host {self.host}"

    @property
    def place(self) -> str:
        """Where in the run it is."""
        return f"at step {self.step}, phase {PHASES[self.phase]}"


@dataclasses.dataclass
class Seen:
    """A rank as rank 0's monitor sees it; times in seconds of that monitor's clock."""

    state: State
    address: Any
    heard: float
    changed: float
    failed: float = math.inf


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What ends the job, as a line; empty while nothing does. `is_loss`: it is not an error of the
    program. `host` is where, and `log` what the rank has printed into, unless it may be several."""

    line: str = ""
    is_loss: bool = True
    host: str = ""
    log: str = ""

    @classmethod
    def on(cls, state: State, line: str, *, is_loss: bool = True) -> Self:
        """One about a single rank."""
        return cls(line, is_loss=is_loss, host=state.host, log=state.log)


def verdict(seen: Collection[Seen], *, job: Job, now: float) -> Verdict:
    """What ends the job, if anything does.

    A death and a silence count at once. An error waits a moment: the death of another rank may have
    caused it, and the monitor of that rank may have died with it.
    """
    present = sorted((one for one in seen if not one.state.left), key=lambda one: one.state.rank)
    faults = sorted((one for one in present if one.state.fault), key=lambda one: one.failed)
    if certain := [one for one in faults if one.state.certain]:
        return Verdict.on(certain[0].state, certain[0].state.fault)
    since = faults[0].failed if faults else math.inf
    settled = now - since > SETTLE_S
    for one in present:
        if job.is_cut(now - one.heard) or (settled and one.heard < since):
            what = f"{one.state.name} is gone {one.state.place}: its node, network or whole job"
            return Verdict.on(one.state, what)
    if settled:
        return Verdict.on(faults[0].state, faults[0].state.fault, is_loss=False)
    missing = sorted(set(range(job.world_size)) - {one.state.rank for one in seen})
    found = _stall(present, job=job, now=now)
    if found.line and missing:
        return Verdict(f"rank {missing[0]} has never come; {found.line}")
    return found


def _stall(present: Sequence[Seen], *, job: Job, now: float) -> Verdict:
    """When nobody gets on: whoever is furthest behind is whom the others wait for."""
    if not present or now - max(one.changed for one in present) < job.stall_s:
        return Verdict()
    least = min((one.state.step, one.state.phase) for one in present)
    behind = [one for one in present if (one.state.step, one.state.phase) == least]
    first, *same = behind
    waiting = [one for one in present if one not in behind]
    line = f"{first.state.name} has been {first.state.place} for {now - first.changed:.0f} s"
    for some, what in ((same, "just there as well"), (waiting, "waiting for it")):
        if some:
            ranks = ", ".join(str(one.state.rank) for one in some[:8])
            more = f" and {len(some) - 8} more" if len(some) > 8 else ""
            line += f"; {what}: {ranks}{more}"
    return Verdict(line) if same or not waiting else Verdict.on(first.state, line)


def say(line: str, *, who: str = "watchdog") -> None:
    """Print one line, whatever a rank has put into it; a log that is gone ends nothing."""
    text = " ".join("".join(c if c.isprintable() else " " for c in line).split())
    with contextlib.suppress(OSError, ValueError):
        say_beside(f"{who}: {text[:1000]}")


def _log_of(descriptor: int) -> str:
    """The file behind it; empty where it is a terminal or a pipe."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.readlink(f"/proc/self/fd/{descriptor}")
    return ""


class Watchdog:
    """While entered, this rank is watched, and ended with the job when any rank is lost.

    The `job` is the same on all ranks; `host` is what the line calls this rank's machine. A rank
    that does not beat for two `job.interval_s` is lost, and so is the job when no rank calls
    `enter` for `job.stall_s`, both in seconds; then rank 0's monitor runs `job.on_loss`. A single
    rank is not watched, nor is any without Linux.

    Left without an error, by SystemExit or by what all ranks have agreed upon, the rank is done.
    Any other error ends the job, and goes on to the caller.
    """

    def __init__(self, job: Job, *, rank: int, host: str) -> None:
        self._job = job
        self._state = State(job.world_size, rank, host, job=job.name, log=_log_of(_STDERR))
        self._watched = job.world_size > 1 and sys.platform == "linux"
        self._cells = memoryview(bytearray(mmap.PAGESIZE)).cast("q")
        self._heard, self._leaving, self._restarts = threading.Event(), False, 0

    @classmethod
    def off(cls) -> Self:
        """One that watches nothing."""
        return cls(Job(world_size=1, address="", port=0), rank=0, host="")

    def enter(self, phase: Phase, *, step: int) -> None:
        """Say that this rank is now in `phase` of `step`; costs less than a microsecond.

        Saying the same again is progress too: a long phase may call it now and then.
        """
        self._cells[STEP] = step
        self._cells[PHASE] = PHASES.index(phase)
        self._cells[ENTERED] += 1

    def __enter__(self) -> Self:
        if self._watched:
            faulthandler.enable(file=_STDERR)
            faulthandler.register(signal.SIGQUIT, file=_STDERR)
            self._memory = os.memfd_create("watchdog")
            os.ftruncate(self._memory, mmap.PAGESIZE)
            self._cells = memoryview(mmap.mmap(self._memory, mmap.PAGESIZE)).cast("q")
            self._start_monitor()
            self._thread = threading.Thread(target=self._beat, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._watched:
            return
        is_agreed = isinstance(error, Ending) and error.agreed
        if error is not None and not isinstance(error, SystemExit) and not is_agreed:
            is_node = isinstance(error, NodeFault)
            what = str(error) if is_node else f"{type(error).__name__}: {error}"
            self._tell(NODE * is_node + what.encode(errors="replace"))
            self._heard.wait(VERDICT_S)
            return  # still watched: the exit may hang
        self._leaving = True
        self._tell(BYE)
        self._thread.join(VERDICT_S)
        with contextlib.suppress(subprocess.TimeoutExpired):  # rank 0's stays for the others
            self._process.wait(1.0)
        self._control.close()
        os.close(self._memory)
        faulthandler.unregister(signal.SIGQUIT)

    def _start_monitor(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(self._job.interval_s / 2)
        handles = (theirs.fileno(), self._memory)
        state = dataclasses.replace(self._state, pid=os.getpid())
        facts = [dataclasses.asdict(self._job), dataclasses.asdict(state)]
        root = str(Path(__file__).resolve().parents[2])
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_MONITORS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START, root, json.dumps([*facts, *handles])],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=handles,
                cwd="/",
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def _tell(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # the monitor is gone, and the thread knows
            self._control.send(message[:MAX_MESSAGE])

    def _beat(self) -> None:
        """The thread: beat, do what the monitor says, and replace it should it die."""
        while True:
            self._cells[BEAT] += 1
            try:
                word = self._control.recv(MAX_MESSAGE)
            except TimeoutError:
                continue
            except OSError:
                word = b""
            if word == END:
                faulthandler.dump_traceback(file=_STDERR)
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                os._exit(WATCHDOG_EXIT)
            if word == HEARD:
                self._heard.set()
            elif word == OVER or self._leaving or not self._replace_monitor():
                return

    def _replace_monitor(self) -> bool:
        """The run goes on whatever happens to its monitor. Whether there is a new one."""
        again = self._restarts < MAX_RESTARTS
        what = "a new one watches it" if again else "nobody watches it any more"
        say(f"the monitor of {self._state.name} ended with {self._process.wait()}; {what}")
        if again:
            self._restarts += 1
            self._control.close()
            self._start_monitor()
            if self._leaving:  # as the old one could not be told
                self._tell(BYE)
        return again

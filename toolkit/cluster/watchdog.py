"""A heartbeat per rank: a dead or stalled rank ends the whole job, with one line that names it.

Beside each training process runs a small process, its monitor (`toolkit.cluster.monitor`). The two
share a socket and a page of memory, where the training process writes its step and phase, and a
thread of it counts heartbeats. When a rank is lost, rank 0's monitor prints the line, and every
monitor ends its own training process. It tells the process to print its stacks and exit with code
70; one second later it prints the stacks by a signal; one second after that it kills the process.
So the exit code is 70, or -9 where Python no longer runs; a rank that fails with an error keeps its
own code.

A rank that is killed, hangs or disappears may succeed on another node. In that case rank 0's
monitor also runs two commands: one may requeue the job, the other exclude the node. An error in a
rank would only repeat itself, so it runs no command, unless the error is a `NodeFault`.

Knows which ranks count as lost, and how a training process reacts, on Linux. Refuses to know what a
step is. `kill -QUIT` prints the stacks of a watched rank at any time without disturbing it.
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

WATCHDOG_EXIT = 70  # EX_SOFTWARE: the process was ended because this rank or another is lost
Phase = Literal["load", "data", "backward", "step", "evaluate", "save", "export"]
PHASES: tuple[Phase, ...] = get_args(Phase)  # in the order of a step

# A monitor is gone that was not heard for four intervals, and at least 3 s: one that replaces a
# dead monitor needs a moment to start.
CUT_INTERVALS, CUT_S = 4.0, 3.0
SETTLE_S = 1.0  # an error may be the consequence of a death that is not reported yet
VERDICT_S = 15.0  # how long a failing rank waits for the line, as its exit makes launchers kill all
MAX_RESTARTS = 3  # how often a rank replaces its monitor
MAX_MESSAGE = 8192
STEP, PHASE, ENTERED, BEAT = range(4)  # places in the shared page, 8 bytes each
BYE, HEARD, OVER, END = b"bye", b"heard", b"over", b"end"  # between a process and its monitor
NODE = b"node:"  # begins a message about a `NodeFault`
# Schedulers and terminals signal whole process groups. A monitor starts with these signals blocked,
# as only its training process should act on them.
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
    """What all ranks agree on. Rank 0's monitor listens on UDP port `port` of `address`. If a rank
    is lost, it runs the command `on_loss` and, at the same time, `on_lost_node` with the lost
    rank's host appended; an empty command is not run. It writes the file `heartbeats` for people.
    `name` differs from that of any other job on this port and of any earlier start of this one, so
    that late messages of those are ignored.
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
        """Whether a monitor that was not heard for `unheard_s` seconds is gone."""
        return unheard_s > max(CUT_INTERVALS * self.interval_s, CUT_S)


@dataclasses.dataclass
class State:
    """What a monitor reports about its rank. `fault` is one line about what happened to the rank;
    it is `certain` if no other rank can have caused it. `left`: the rank has ended properly and
    need not be watched any more. `log` is the file that the rank prints into, empty if none."""

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
        """The rank and its host, in words for a message."""
        return f"rank {self.rank} on host {self.host}"

    @property
    def place(self) -> str:
        """The step and phase that the rank is in, in words for a message."""
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
    """Why the job must end, in one `line`; empty while it need not. `is_loss`: the reason is not an
    error of the program. `host` and `log` are those of the rank that caused it; empty if several
    ranks may have."""

    line: str = ""
    is_loss: bool = True
    host: str = ""
    log: str = ""

    @classmethod
    def on(cls, state: State, line: str, *, is_loss: bool = True) -> Self:
        """A verdict about a single rank."""
        return cls(line, is_loss=is_loss, host=state.host, log=state.log)


def verdict(seen: Collection[Seen], *, job: Job, now: float) -> Verdict:
    """Why the job must end, if it must.

    A death or a silence counts at once. An error counts only after `SETTLE_S`: the death of another
    rank may have caused it, and that rank's monitor may have died with it.
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
    stall = _stall(present, job=job, now=now)
    if stall.line and missing:
        return Verdict(f"rank {missing[0]} has never reported; {stall.line}")
    return stall


def _stall(present: Sequence[Seen], *, job: Job, now: float) -> Verdict:
    """The verdict if no rank makes progress. It blames the rank that is furthest behind, because
    the others wait for that one."""
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
    """Print exactly one line, even if `line` holds control characters from a rank. Errors are
    ignored: a log that cannot be written must not end the job."""
    text = " ".join("".join(c if c.isprintable() else " " for c in line).split())
    with contextlib.suppress(OSError, ValueError):
        say_beside(f"{who}: {text[:1000]}")


def _log_of(descriptor: int) -> str:
    """The path of the file behind a descriptor; empty for a terminal or a pipe."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.readlink(f"/proc/self/fd/{descriptor}")
    return ""


class Watchdog:
    """While entered, this rank is watched, and is ended with the whole job when any rank is lost.

    `job` is the same on all ranks; `host` is the name of this rank's machine in messages. A rank is
    lost when it does not beat for two intervals of `job.interval_s` seconds; the job is lost when
    no rank calls `enter` for `job.stall_s` seconds. In both cases rank 0's monitor runs
    `job.on_loss`. A job of a single rank is not watched, nor is one without Linux.

    The rank is done when the block is left without an error, by SystemExit, or by an error that all
    ranks have agreed on. Any other error ends the job, and is passed on to the caller.
    """

    def __init__(self, job: Job, *, rank: int, host: str) -> None:
        self._job = job
        self._state = State(job.world_size, rank, host, job=job.name, log=_log_of(_STDERR))
        self._watched = job.world_size > 1 and sys.platform == "linux"
        self._cells = memoryview(bytearray(mmap.PAGESIZE)).cast("q")
        self._heard, self._leaving, self._restarts = threading.Event(), False, 0

    @classmethod
    def off(cls) -> Self:
        """A watchdog that watches nothing, for runs that are not to be watched."""
        return cls(Job(world_size=1, address="", port=0), rank=0, host="")

    def enter(self, phase: Phase, *, step: int) -> None:
        """Say that this rank is now in `phase` of `step`; costs less than a microsecond.

        Repeating the same phase counts as progress too, so a long phase may call it now and then.
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
            return  # this rank stays watched, because its exit may hang
        self._leaving = True
        self._tell(BYE)
        self._thread.join(VERDICT_S)
        # Rank 0's monitor may run on, to answer the monitors of ranks that are not done.
        with contextlib.suppress(subprocess.TimeoutExpired):
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
        with contextlib.suppress(
            OSError
        ):  # the monitor is gone; the thread notices and replaces it
            self._control.send(message[:MAX_MESSAGE])

    def _beat(self) -> None:
        """Run the thread: count beats, do what the monitor says, and replace it if it dies."""
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
        """Start a new monitor after the old one has died; returns whether there is a new one. The
        run goes on in any case."""
        again = self._restarts < MAX_RESTARTS
        what = "a new one watches it" if again else "nobody watches it any more"
        say(f"the monitor of {self._state.name} ended with {self._process.wait()}; {what}")
        if again:
            self._restarts += 1
            self._control.close()
            self._start_monitor()
            if self._leaving:  # the old one died before it could be told
                self._tell(BYE)
        return again

"""Real faults in real processes: four ranks on this machine, one of them in trouble at step 12."""

import contextlib
import dataclasses
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from toolkit.cluster.heartbeats import of_nodes, read_heartbeats
from toolkit.cluster.monitor import parse
from toolkit.cluster.watchdog import (
    PHASES,
    WATCHDOG_EXIT,
    Job,
    Seen,
    State,
    Verdict,
    Watchdog,
    verdict,
)

RANKS, CULPRIT, INTERVAL_S, STALL_S = 4, 2, 0.5, 3.0
SCRIPT = """
import collections, ctypes, itertools, json, os, resource, signal, socket, sys, time
from pathlib import Path
from toolkit.cluster.watchdog import Job, Watchdog

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
rank, port, fault, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
interval_s, stall_s, ranks, culprit = map(float, sys.argv[5:])
peers = []

def get_into_trouble():
    (folder / "fault").write_text(str(time.monotonic()))
    match fault:
        case "error":
            raise ValueError("a loss of\\ntwo lines")
        case "kill" | "torn":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fork":  # a child that lives on holds all that was open
            if os.fork() == 0:
                time.sleep(5)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        case "term":
            os.kill(os.getpid(), signal.SIGTERM)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "lock":
            collections.deque(itertools.repeat(0), maxlen=0)
        case "sleep":
            time.sleep(1000)
        case "exit":
            os._exit(3)
        case "slow":
            time.sleep(1.5)

def wait_for_the_others(step):
    (folder / f"{rank}-{step}").touch()
    while not all((folder / f"{other}-{step}").exists() for other in range(int(ranks))):
        time.sleep(0.005)
        for peer in peers:
            if peer.recv(1) == b"":
                raise ConnectionResetError("closed by peer")

def train(watchdog):
    for step in range(int(os.environ.get("STEPS", 25))):
        for phase in ("data", "backward", "step"):
            watchdog.enter(phase, step=step)
            if (rank, step, phase) == (culprit, 12, "backward"):
                get_into_trouble()
            time.sleep(0.01)
        wait_for_the_others(step)

class Peer:  # what a collective library has: a socket to every other rank
    def __init__(self):
        name = str(folder / "socket")
        self.socket = socket.socket(socket.AF_UNIX)
        if rank == culprit:
            self.socket.bind(name)
            self.socket.listen()
            return
        while self.socket.connect_ex(name):
            time.sleep(0.01)
        self.socket.setblocking(False)
        peers.append(self)

    def recv(self, count):
        try:
            return self.socket.recv(count)
        except BlockingIOError:
            return None

if fault == "torn":
    peer = Peer()
on_loss = ["cp", str(folder / "fault"), str(folder / "loss")]
beats = str(folder / "heartbeats.json")
job = Job(int(ranks), "localhost", port, interval_s, stall_s, on_loss, heartbeats=beats)
with Watchdog(job, rank=rank, host=f"n{rank}") as watchdog:
    train(watchdog)
    if fault == "told to stop":
        raise SystemExit(75)
"""


class Ranks:
    """The processes of a job; their logs are files, as with a scheduler."""

    def __init__(
        self, folder: Path, *, fault: str, steps: int = 25, culprit: int = CULPRIT
    ) -> None:
        self.folder, self.port = folder, a_port()
        (folder / "job.py").write_text(SCRIPT)
        self.environ = {**os.environ, "PYTHONPATH": str(ROOT), "STEPS": str(steps)}
        self.fault, self.culprit = fault, culprit
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, *ranks: int) -> None:
        facts = (INTERVAL_S, STALL_S, RANKS, self.culprit)
        for rank in ranks or range(RANKS):
            with (self.folder / f"{rank}.log").open("wb") as log:
                self.processes[rank] = subprocess.Popen(
                    [sys.executable, "-S", str(self.folder / "job.py"), str(rank), str(self.port)]
                    + [self.fault, str(self.folder), *map(str, facts)],
                    env=self.environ,
                    stderr=log,
                )

    def log(self, rank: int) -> str:
        return (self.folder / f"{rank}.log").read_text(errors="replace")

    def lines(self) -> list[str]:
        logs = [self.log(rank) for rank in self.processes]
        return [line for log in logs for line in log.splitlines() if line.startswith("watchdog: ")]

    def monitors(self) -> dict[int, int]:
        """The process of each rank's monitor."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if len(words) > 2 and f'"port": {self.port},'.encode() in words[-2]:
                    found[json.loads(words[-2])[1]["rank"]] = int(path.parts[2])
        return found

    def wait_for_line(self) -> float:
        """Until a line is there; returns the seconds from the fault to it."""
        until = time.monotonic() + 30
        while not self.lines() and time.monotonic() < until:
            time.sleep(0.01)
        assert self.lines(), "\n".join(map(self.log, self.processes))
        return time.monotonic() - float((self.folder / "fault").read_text())

    def wait(self) -> list[int]:
        """The exit codes in the order of ranks, once all processes and monitors are gone."""
        codes = [process.wait(30) for _, process in sorted(self.processes.items())]
        until = time.monotonic() + 15
        while self.monitors() and time.monotonic() < until:
            time.sleep(0.02)
        assert self.monitors() == {}
        return codes

    def wait_for_step(self, step: int) -> None:
        until = time.monotonic() + 30
        while not (self.folder / f"0-{step}").exists() and time.monotonic() < until:
            time.sleep(0.01)


def a_port() -> int:
    """A free port for datagrams, outside of those that the kernel gives away."""
    while True:
        port = random.randrange(20000, 32000)
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """Start four ranks, which are killed at the end of a test that fails."""
    started = []

    def call(fault: str, *, only: tuple[int, ...] = (), **options: int) -> Ranks:
        started.append(Ranks(tmp_path, fault=fault, **options))
        started[-1].start(*only)
        return started[-1]

    yield call
    for ranks in started:
        for process in ranks.processes.values():
            process.kill()
            process.wait()
        for process_id in ranks.monitors().values():
            os.kill(process_id, signal.SIGKILL)


FAULTS = [
    ("error", "failed at step 12, phase backward: ValueError: a loss of two lines", 1),
    ("kill", "was killed by SIGKILL (out of memory?) at step 12, phase backward", -9),
    ("fork", "was killed by SIGKILL (out of memory?) at step 12, phase backward", -9),
    ("term", "was killed by SIGTERM at step 12, phase backward", -15),
    ("segfault", "was killed by SIGSEGV at step 12, phase backward", -11),
    ("abort", "was killed by SIGABRT at step 12, phase backward", -6),
    ("exit", "ended with exit code 3 and without a word at step 12, phase backward", 3),
    ("stop", "does not respond at step 12, phase backward: a signal has stopped it", WATCHDOG_EXIT),
    ("lock", "does not respond at step 12, phase backward: no beat for N s, something holds", -9),
    (
        "sleep",
        "has been at step 12, phase backward for N s; waiting for it: 0, 1, 3",
        WATCHDOG_EXIT,
    ),
]
NO_STACKS = ("kill", "fork", "term", "exit")  # nothing of the process is left to print them
Start = Callable[..., Ranks]


@pytest.mark.parametrize(("fault", "line", "code"), FAULTS, ids=[one[0] for one in FAULTS])
def test_a_fault_ends_the_job_with_one_line(start: Start, fault: str, line: str, code: int) -> None:
    ranks = start(fault)
    seconds = ranks.wait_for_line()
    codes = ranks.wait()
    print(f"{fault}: {seconds:.2f} s, exit codes {codes}, {ranks.lines()}")
    (found,) = ranks.lines()
    said = re.sub(r"for \d+ s", "for N s", found)  # a busy machine needs longer to notice
    assert said.startswith(f"watchdog: rank {CULPRIT} on host n{CULPRIT} {line}")
    # What is lost may do better elsewhere; an error would come again.
    is_loss = fault != "error"
    assert ("; running cp " in found) == (ranks.folder / "loss").exists() == is_loss
    assert found in ranks.log(0)
    log = f"; its log: {ranks.folder}/{CULPRIT}.log"
    assert log in found
    last = ranks.log(0).splitlines()[-1]  # below the stacks
    assert last.startswith("error: ") and last.endswith(log)
    assert last.removeprefix("error: ") in found
    assert codes == [WATCHDOG_EXIT, WATCHDOG_EXIT, code, WATCHDOG_EXIT]
    for rank in range(RANKS):
        log = ranks.log(rank)
        if rank != CULPRIT:
            assert "most recent call first" in log
            assert "in train" in log
        elif fault == "stop":
            assert "most recent call first" in log  # told when it goes on, wherever it is by then
        elif fault not in NO_STACKS:
            assert "in get_into_trouble" in log


@pytest.mark.parametrize(("fault", "code"), [("kill", -9), ("error", 1)])
def test_a_fault_of_the_rank_that_decides(start: Start, fault: str, code: int) -> None:
    ranks = start(fault, culprit=0)
    ranks.wait_for_line()
    assert ranks.wait() == [code, WATCHDOG_EXIT, WATCHDOG_EXIT, WATCHDOG_EXIT]
    (found,) = ranks.lines()
    assert found.startswith("watchdog: rank 0 on host n0 ") and "its log" not in found
    assert "at step 12, phase backward" in found


def test_errors_that_a_death_has_caused_are_not_blamed(start: Start) -> None:
    ranks = start("torn")
    # A launcher that reaps at once may be faster than the monitor's look at the exit status.
    threading.Thread(target=ranks.processes[CULPRIT].wait).start()
    ranks.wait_for_line()
    codes = ranks.wait()
    assert codes.pop(CULPRIT) == -9
    assert set(codes) <= {1, WATCHDOG_EXIT}  # whichever is first, its error or the end of the job
    (found,) = ranks.lines()
    how = r"(was killed by SIGKILL \(out of memory\?\)|ended without a word \(killed\?\))"
    assert re.match(
        f"watchdog: rank 2 on host n2 {how} at step 12, phase backward; its log: ", found
    )
    assert "ConnectionResetError: " in "".join(map(ranks.log, range(RANKS)))


@pytest.mark.parametrize(("fault", "code"), [("none", 0), ("slow", 0), ("told to stop", 75)])
def test_no_fault_no_line(start: Start, fault: str, code: int) -> None:
    ranks = start(fault, steps=40)
    ranks.wait_for_step(30)  # all are known by now
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        state = dataclasses.asdict(State(RANKS, 1, "n1", pid=1, fault="of another job"))
        strange = [[1], {}, {"rank": 1}, {**state, "step": "12"}, {**state, "phase": 7}, state]
        # Which it would be, but for the name of its job.
        strange.append({**state, "rank": 3, "host": "n3", "job": "of another life"})
        for message in [b"", b"\xff", b"[" * 5000, *(json.dumps(it).encode() for it in strange)]:
            stranger.sendto(message, ("127.0.0.1", ranks.port))
    assert ranks.wait() == [code] * RANKS
    assert ranks.lines() == []


def test_rank_0_may_come_last(start: Start) -> None:
    ranks = start("none", only=(1, 2, 3))
    time.sleep(3 * INTERVAL_S)
    ranks.start(0)
    assert ranks.wait() == [0] * RANKS
    assert ranks.lines() == []


@pytest.mark.parametrize("rank", [0, CULPRIT])
def test_a_run_survives_the_end_of_a_monitor(start: Start, rank: int) -> None:
    ranks = start("none", steps=60)
    ranks.wait_for_step(5)
    os.kill(ranks.monitors()[rank], signal.SIGKILL)
    assert ranks.wait() == [0] * RANKS
    line = (
        f"watchdog: the monitor of rank {rank} on host n{rank} ended with -9; a new one watches it"
    )
    assert ranks.lines() == [line]


def test_a_new_monitor_watches_as_the_old_one(start: Start) -> None:
    ranks = start("kill")
    ranks.wait_for_step(2)
    os.kill(ranks.monitors()[0], signal.SIGKILL)
    assert ranks.wait() == [WATCHDOG_EXIT, WATCHDOG_EXIT, -9, WATCHDOG_EXIT]
    assert "rank 2 on host n2 was killed by SIGKILL" in ranks.lines()[-1]


def test_signals_to_the_whole_job_leave_the_monitors_alone(start: Start) -> None:
    ranks = start("none", steps=60)
    ranks.wait_for_step(0)
    until = time.monotonic() + 10
    while len(ranks.monitors()) < RANKS and time.monotonic() < until:
        time.sleep(0.01)  # one may have been forked and is not itself yet
    monitors = list(ranks.monitors().values())
    assert len(monitors) == RANKS
    for name in ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "TSTP"]:
        for monitor in monitors:
            os.kill(monitor, signal.Signals[f"SIG{name}"])
    os.kill(ranks.processes[1].pid, signal.SIGQUIT)
    # A suspended job is not a silent one.
    everybody = [*monitors, *(process.pid for process in ranks.processes.values())]
    for process_id in everybody:
        os.kill(process_id, signal.SIGSTOP)
    time.sleep(2.0)
    for process_id in everybody:
        os.kill(process_id, signal.SIGCONT)
    assert ranks.wait() == [0] * RANKS
    assert ranks.lines() == []
    assert "in train" in ranks.log(1)  # QUIT prints the stacks and does not disturb


@pytest.mark.parametrize("rank", [0, CULPRIT])
def test_a_node_that_is_gone(start: Start, rank: int) -> None:
    ranks = start("none", steps=1000)
    ranks.wait_for_step(30)
    monitor = ranks.monitors()[rank]
    os.kill(ranks.processes[rank].pid, signal.SIGSTOP)  # it must not replace its monitor
    os.kill(monitor, signal.SIGKILL)
    ranks.processes[rank].kill()
    assert ranks.wait() == [-9 if it == rank else WATCHDOG_EXIT for it in range(RANKS)]
    lines = ranks.lines()
    print(lines)
    if rank == 0:
        assert lines
        assert all(line.startswith("watchdog: rank 0 is gone") for line in lines)
    else:
        (line,) = lines
        assert line.startswith("watchdog: rank 2 on host n2 is gone at step ")


def seen(rank: int, *, step: int = 0, phase: int = 0, heard: float = 100, **facts: Any) -> Seen:
    state = State(4, rank, f"n{rank}", step=step, phase=phase, fault=facts.pop("fault", ""))
    state.certain, state.left = facts.pop("certain", False), facts.pop("left", False)
    return Seen(state, None, heard=heard, changed=facts.pop("changed", 90), **facts)


JOB = Job(4, "localhost", 1, interval_s=5.0, stall_s=60.0)


def test_a_death_is_blamed_before_an_error_and_an_error_waits() -> None:
    error = seen(1, fault="an error", failed=99.5)
    assert verdict([seen(0), error], job=JOB, now=100).line == ""
    assert verdict([seen(0), error], job=JOB, now=101) == Verdict(
        "an error", is_loss=False, host="n1"
    )
    death = seen(2, fault="a death", certain=True, failed=99.9)
    assert verdict([seen(0), error, death], job=JOB, now=100) == Verdict("a death", host="n2")
    mute = seen(3, heard=99, step=4, phase=1)
    gone = "rank 3 on host n3 is gone at step 4, phase data: its node, network or whole job"
    assert verdict([seen(0), error, mute], job=JOB, now=101) == Verdict(gone, host="n3")


def test_a_stall_names_who_is_furthest_behind() -> None:
    ahead, behind = seen(0, step=3, phase=2), seen(3, step=3, phase=1, changed=80)
    late, done = seen(1, step=3, phase=1), seen(2, left=True, heard=0, changed=0)
    ranks = [ahead, late, behind, done]
    for one in ranks:
        one.heard = 150
    assert verdict(ranks, job=JOB, now=149) == Verdict()
    found = verdict(ranks, job=JOB, now=150)
    assert found.line.startswith("rank 1 on host n1 has been at step 3, phase data for 60 s")
    assert found.line.endswith("just there as well: 3; waiting for it: 0")
    assert found.host == ""  # which of the two it is nobody knows
    assert verdict([ahead, late, done], job=dataclasses.replace(JOB, world_size=3), now=150).host
    line = verdict([ahead, late, done], job=JOB, now=150).line
    assert line.startswith("rank 3 has never reported; rank 1 on host n1 has been at ")
    assert verdict([done], job=JOB, now=1000) == Verdict()


def test_when_each_node_was_last_heard_is_written_for_people(start: Start, tmp_path: Path) -> None:
    ranks, path = start("none", steps=1000), tmp_path / "heartbeats.json"
    ranks.wait_for_step(8)
    time.sleep(2 * INTERVAL_S)
    assert not path.exists()  # the run has not begun
    (tmp_path / "config.yaml").touch()
    found: dict[str, dict[str, Any]] = {}
    for step in range(2):
        until = time.monotonic() + 30
        while len(found) < RANKS or found["n3"]["step"] <= step:
            assert time.monotonic() < until, found
            time.sleep(0.05)
            found = {beat["node"]: beat for beat in read_heartbeats(path, now=time.time())}
    assert sorted(found) == ["n0", "n1", "n2", "n3"]
    assert all(0 <= beat["seconds"] < 10 and beat["phase"] in PHASES for beat in found.values())
    for rank in (2, 3):
        ranks.processes[rank].kill()
    ranks.wait()
    later = read_heartbeats(path, now=path.stat().st_mtime + 100)
    assert all(100 <= beat["seconds"] < 110 for beat in later)
    path.write_text("{")
    assert read_heartbeats(path, now=time.time()) == []


def test_one_rank_is_not_watched() -> None:
    with Watchdog.off() as watchdog:
        watchdog.enter("save", step=3)
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        assert not any(b"monitor" in Path(f"/proc/{it}/cmdline").read_bytes() for it in children)


def test_a_node_is_as_late_as_its_last_rank() -> None:
    ranks = {one.state.rank: one for one in (seen(0, heard=99), seen(1, step=4), seen(2, step=3))}
    ranks[1].state.host = ranks[2].state.host = "n9"
    ranks[2].heard = 95.0
    ranks[3] = seen(3, left=True)
    assert of_nodes(ranks, clock=lambda: 100.0) == [
        {"node": "n0", "seconds": 1, "step": 0, "phase": "load"},
        {"node": "n9", "seconds": 5, "step": 3, "phase": "load"},
    ]


def test_what_is_no_state_is_no_message() -> None:
    state = State(4, 1, "n1", pid=7, step=2, phase=3, entered=9, fault="x", certain=True)
    assert parse(json.dumps(dataclasses.asdict(state)).encode()) == state
    assert parse(b"{}") is None

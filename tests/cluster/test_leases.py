"""Leases: one owner at a time, taken over when nothing moves in them, or when the owner is gone."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from toolkit.cluster.leases import Leases, this_process

LEASE_S = 10.0


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def mine(tmp_path: Path, clock: Clock) -> Iterator[Leases]:
    with Leases(tmp_path / "leases", lease_s=LEASE_S, now=clock) as leases:
        yield leases


@pytest.fixture
def theirs(mine: Leases, tmp_path: Path, clock: Clock) -> Iterator[Leases]:
    with Leases(tmp_path / "leases", lease_s=LEASE_S, now=clock) as leases:
        yield leases


def move(path: Path) -> None:
    """What the owner's heartbeat does."""
    with path.open("r+b") as handle:
        beats = int(handle.read(20)) + 1
        handle.seek(0)
        handle.write(f"{beats:020d}".encode())


def test_a_name_has_one_owner(mine: Leases, theirs: Leases) -> None:
    assert mine.take("a")
    assert mine.holds("a")
    assert not mine.take("a")
    assert not theirs.take("a")
    assert not theirs.holds("a")
    assert theirs.taken() == {"a": 0}
    theirs.give_back("a")  # not theirs to give
    assert mine.holds("a")
    mine.give_back("a")
    assert not mine.holds("a")
    assert theirs.taken() == {}
    assert theirs.take("a")


def test_of_many_processes_one_gets_it(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib\n"
        "from toolkit.cluster.leases import Leases\n"
        "with Leases(pathlib.Path(sys.argv[1]), lease_s=60) as leases:\n"
        "    print(end='ready\\n', flush=True); sys.stdin.readline()\n"
        "    got = [n for n in range(300) if leases.take(str(n))]\n"
        "    print(*got, flush=True); sys.stdin.readline()\n"
    )
    crew = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "leases")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    got = []
    for process in crew:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in crew:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in crew:
        assert process.stdout
        got += process.stdout.readline().split()
    for process in crew:
        process.communicate("end\n")
    assert sorted(got, key=int) == [str(n) for n in range(300)]
    assert not (tmp_path / "leases").exists()  # the last one takes it along


def test_a_lease_is_stale_when_the_watcher_saw_no_change(
    mine: Leases, theirs: Leases, clock: Clock, tmp_path: Path
) -> None:
    """By the watcher's own clock, from when it first looked; every heartbeat begins anew."""
    assert mine.take("a")
    clock.seconds += 1000  # nobody was watching
    assert not theirs.take("a", generation=0)
    clock.seconds += LEASE_S - 1
    assert not theirs.take("a", generation=0)
    move(tmp_path / "leases" / "a.0")
    clock.seconds += 2
    assert not theirs.take("a", generation=0)
    clock.seconds += LEASE_S
    assert theirs.take("a", generation=0)
    assert theirs.holds("a")
    assert theirs.taken() == {"a": 1}


def test_who_was_only_slow_knows_that_it_has_lost(
    mine: Leases, theirs: Leases, clock: Clock
) -> None:
    assert mine.take("a")
    assert not theirs.take("a", generation=0)
    clock.seconds += LEASE_S
    assert theirs.take("a", generation=0)
    assert not mine.holds("a")
    mine.give_back("a")  # does not give back what is theirs
    assert theirs.holds("a")
    theirs.give_back("a")
    assert theirs.taken() == {}
    assert mine.take("a")


def test_of_two_watchers_one_takes_over(
    mine: Leases, theirs: Leases, tmp_path: Path, clock: Clock
) -> None:
    with Leases(tmp_path / "leases", lease_s=LEASE_S, now=clock) as third:
        assert mine.take("a")
        for watcher in (theirs, third):
            assert not watcher.take("a", generation=0)
        clock.seconds += LEASE_S
        assert theirs.take("a", generation=0)
        assert not third.take("a", generation=0)  # it is at generation 1 by now
        assert not third.take("a", generation=1)


def test_the_heartbeat_keeps_a_lease(tmp_path: Path) -> None:
    """The real thread and the real clock: the owner lives, and is not taken for dead."""
    with (
        Leases(tmp_path / "leases", lease_s=1.2) as owner,
        Leases(tmp_path / "leases", lease_s=1.2) as watcher,
    ):
        assert owner.take("a")
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert not watcher.take("a", generation=0)
            time.sleep(0.1)
        assert owner.holds("a")


def test_a_stopped_owner_is_taken_over_by_the_real_clock(tmp_path: Path) -> None:
    """SIGSTOP: the process is there, nothing moves."""
    process = owner_process(tmp_path / "leases")
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with Leases(tmp_path / "leases", lease_s=1.0) as watcher:
            began = time.monotonic()
            while not watcher.take("a", generation=0):
                assert time.monotonic() - began < 10
                time.sleep(0.05)
            assert time.monotonic() - began >= 1.0
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()


def owner_process(folder: Path) -> "subprocess.Popen[str]":
    """Another process that has the lease of "a"."""
    script = (
        "import sys, time, pathlib\n"
        "from toolkit.cluster.leases import Leases\n"
        "with Leases(pathlib.Path(sys.argv[1]), lease_s=60) as leases:\n"
        "    print(leases.take('a'), flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "True\n"
    return process


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_process_of_this_host_is_not_waited_for(tmp_path: Path, reaped: bool) -> None:
    process = owner_process(tmp_path / "leases")
    with Leases(tmp_path / "leases", lease_s=60) as watcher:
        assert not watcher.take("a", generation=0)
        process.kill()
        if reaped:
            process.wait()
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert watcher.take("a", generation=0)
    process.communicate()


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({}, False),
        ({"started": 1}, True),  # the same number, another process
        ({"pid": 2**22 + 1}, True),
        ({"pid": 2**22 + 1, "boot": "another host"}, False),
        ({"pid": 2**22 + 1, "pid_namespace": 1}, False),  # a container: its processes are unseen
    ],
)
def test_only_what_we_would_see_is_gone(
    changes: dict[str, object], gone: bool, mine: Leases, tmp_path: Path
) -> None:
    content = f"{7:020d} {json.dumps(this_process() | changes)}\n"
    (tmp_path / "leases" / "a.3").write_text(content)
    assert mine.taken() == {"a": 3}
    assert mine.take("a", generation=3) == gone


@pytest.mark.parametrize("content", ["", "000", f"{0:020d} {{", f"{0:020d} [1]"])
def test_a_lease_whose_maker_died_at_it_is_stale_in_its_time(
    content: str, mine: Leases, clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / "leases" / "a.0").write_text(content)
    assert not mine.take("a", generation=0)
    clock.seconds += LEASE_S
    assert mine.take("a", generation=0)


def test_leaving_gives_everything_back(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    with Leases(folder, lease_s=60) as leases:
        assert all(leases.take(name) for name in "abc")
        assert len(list(folder.iterdir())) == 3
    assert not folder.exists()
    assert not [t for t in threading.enumerate() if t.name == "leases"]


def test_a_directory_that_another_took_along_is_made_again(mine: Leases, tmp_path: Path) -> None:
    (tmp_path / "leases").rmdir()
    assert mine.taken() == {}
    assert mine.take("a") or mine.take("a")  # the first try makes the directory
    assert mine.holds("a")

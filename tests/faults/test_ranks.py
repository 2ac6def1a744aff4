"""One of several ranks gets into trouble: who says so, how soon, how all end, and what is lost.

Whatever it was, the same command goes on and ends as the run that nothing happened to.
"""

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.faults.killer import Run, Trainer
from tests.faults.test_kills import Outcome, outcome
from tests.faults.troubles import STEP, TROUBLES
from tests.light import FEW_ADAPTERS
from toolkit.cluster.watchdog import WATCHDOG_EXIT
from toolkit.training import steps

RANKS, FEWER_RANKS = 4, 3  # of all troubles, and of a short version of two
CULPRIT, STEPS, SAVE_EVERY, HEARTBEAT_S, STALL_S = 2, 8, 2, 2.0, 20.0
LINE = re.compile(
    r"^(watchdog: |error: |warning: .* could not be saved|mntp: told to stop).*", re.M
)
WHERE = f"at step {STEP}, phase backward"


@dataclasses.dataclass(frozen=True)
class Expected:
    """The line that says what is wrong, the exit codes of the culprit and of the others, and the
    step from which the next start goes on."""

    line: str
    code: int = 0
    others: int = WATCHDOG_EXIT
    goes_on_after: int = STEP - 2


ENDED = {
    "exception": Expected(f"failed {WHERE}: ValueError: a loss that nobody understands", 1),
    # How it died is not known where whoever has started it was quicker to ask.
    "SIGKILL": Expected(rf"(was killed by SIGKILL|ended without a word) \(.*\?\) {WHERE}", -9),
    "SIGINT": Expected(f"failed {WHERE}: KeyboardInterrupt", 130),
    "SIGSTOP": Expected(f"does not respond {WHERE}: a signal has stopped it", WATCHDOG_EXIT),
    "segfault": Expected(rf"was killed by SIGSEGV {WHERE}", -11),
    "abort": Expected(f"was killed by SIGABRT {WHERE}", -6),
    "GIL held": Expected(f"does not respond {WHERE}: no beat for 4 s, something holds", -9),
    "stuck while reading": Expected(
        f"rank 2 .* at step {STEP}, phase data for {STALL_S:.0f} s; waiting for it: 0, 1, 3",
        WATCHDOG_EXIT,
    ),
    # All of them are in the same phase then: the stacks tell who does not wait for the others.
    "stuck while others wait": Expected(
        f"rank 0 .* has been {WHERE} for {STALL_S:.0f} s; just there as well: 1, 2, 3",
        WATCHDOG_EXIT,
    ),
}
LIVED = {
    "SIGTERM": Expected(f"told to stop; step {STEP + 1} is saved", 75, 75, STEP + 1),
    "slow rank": Expected("", 0, 0, STEPS),
    "clock jumps": Expected("", 0, 0, STEPS),
    "disk full, then not": Expected("step 6 could not be saved", 0, 0, STEPS),
    "quota": Expected(r"step 6 could not be saved \(rank 2: \[Errno 122", 0, 0, STEPS),
    "disk full at the last rename": Expected("step 6 could not be saved", 0, 0, STEPS),
    "disk full": Expected("step 6 could not be saved", 1, 1),
    "read-only file system": Expected("step 6 could not be saved", 1, 1),
}
BY_RANK_0 = ("disk full at the last rename",)  # which alone renames
Whole = Callable[[int], Outcome]  # by the number of ranks


@pytest.fixture(scope="module")
def arguments(shards: Path, tiny_model: Path) -> list[str]:
    given = [f"data.train={shards}", f"model.base={tiny_model}", f"train.steps={STEPS}"]
    given.append(FEW_ADAPTERS)
    given += [f"train.heartbeat_s={HEARTBEAT_S}", f"train.stall_s={STALL_S}"]
    return ["tiny_mntp", *given, f"train.save_every_steps={SAVE_EVERY}", "deepspeed.config=zero3"]


@pytest.fixture(scope="module")
def whole(arguments: list[str], runs: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The run that nothing happens to."""

    @functools.cache
    def of(ranks: int) -> Outcome:
        run_dir = tmp_path_factory.mktemp("whole") / "run"
        assert runs.codes(Run(arguments, str(run_dir), ranks=ranks)) == [0] * ranks, runs.printed()
        return outcome(run_dir)

    return of


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 64 MB."""
    need(os.geteuid() == 0 and bool(shutil.which("mount")), "needs root, to mount a tmpfs")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    need(done.returncode == 0, f"no tmpfs can be mounted: {done.stderr}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Watcher(threading.Thread):
    """Notes when the line is there, for the table."""

    def __init__(self, runs: Trainer) -> None:
        super().__init__(daemon=True)
        self.runs, self.seen, self.line = runs, 0.0, ""
        self.ended = threading.Event()

    def run(self) -> None:
        """Until the line is there, or all ranks have ended."""
        while not self.line:
            over = self.ended.wait(0.05)
            with contextlib.suppress(OSError):
                if found := LINE.search(self.runs.printed()):
                    self.line, self.seen = found[0], time.monotonic()
            if over:
                return


def suffer(runs: Trainer, run: Run) -> tuple[list[int], str, float]:
    """The exit codes, the first line that says something, and the seconds from trouble to line."""
    watcher = Watcher(runs)
    watcher.start()
    codes = runs.codes(run)
    watcher.ended.set()
    watcher.join()
    return codes, watcher.line, watcher.seen - runs.time_of_trouble()


def check(name: str, *, ranks: int, arguments: list[str], runs: Trainer, disk: Path) -> str:
    """The row of the table, once everything is as expected; the run has gone on to its end."""
    expected = {**ENDED, **LIVED}[name]
    run_dir, culprit = disk / "run", 0 if name in BY_RANK_0 else CULPRIT
    run = Run(arguments, str(run_dir), ranks=ranks, watched=culprit, trouble=name)
    codes, line, seconds = suffer(runs, run)
    printed = runs.printed()
    assert codes.pop(culprit) == expected.code, printed
    # Of a rank that is lost, the others hear by their collectives too: an error of their own.
    others = {expected.others, 1} if name in ENDED else {expected.others}
    assert set(codes) <= others, printed
    assert re.search(expected.line, line) if expected.line else not line, printed
    if name in ENDED:
        culprit_named = f"watchdog: rank {CULPRIT} on host " in line
        assert culprit_named or name == "stuck while others wait"
        assert len(re.findall("^watchdog: ", printed, flags=re.M)) == 1, printed
        stacks = re.findall("most recent call (?:first|last)", printed)
        assert len(stacks) >= ranks - 1  # of those that still could
    if expected.code == expected.others == 1:  # the last state is lost: the run's own failure
        assert printed.count(f"error: {run_dir}: step {STEPS} could not be saved") == ranks
    newest = steps.newest_step(run_dir)
    assert newest == expected.goes_on_after
    done = {1: STEPS, 0: STEPS, 75: newest}[expected.code] if name in LIVED else STEP - 1
    lost = done - newest
    told = f"{seconds:.1f} s" if line else "-"
    shown = line.replace(str(run_dir), "RUN") or "(nothing is wrong)"
    return f"| {name} | {expected.code} | {shown} | {told} | {lost} |"


def go_on(arguments: list[str], *, ranks: int, runs: Trainer, disk: Path) -> Outcome:
    (disk / "ballast").unlink(missing_ok=True)
    run = Run(arguments, str(disk / "run"), ranks=ranks)
    assert runs.codes(run) == [0] * ranks, runs.printed()
    return outcome(disk / "run")


def assert_same(found: Outcome, whole: Outcome) -> None:
    assert found.tensors == whole.tensors
    assert found.losses == whole.losses
    # Which older checkpoints are kept depends on which could be saved.
    names = [
        {file for file in files if not re.match("checkpoints/step-0000000[467]", file)}
        for files in (found.files, whole.files)
    ]
    assert names[0] == names[1]


def test_every_trouble_is_expected() -> None:
    assert set(TROUBLES) == {*ENDED, *LIVED}


@pytest.mark.parametrize("name", ["SIGKILL", "disk full, then not"])
def test_a_rank_in_trouble(
    name: str, arguments: list[str], runs: Trainer, whole: Whole, disk: Path
) -> None:
    print(check(name, ranks=FEWER_RANKS, arguments=arguments, runs=runs, disk=disk))
    end = go_on(arguments, ranks=FEWER_RANKS, runs=runs, disk=disk)
    assert_same(end, whole(FEWER_RANKS))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ENDED, *LIVED])
def test_all_troubles_of_a_rank(
    name: str, arguments: list[str], runs: Trainer, whole: Whole, disk: Path
) -> None:
    print("\n" + check(name, ranks=RANKS, arguments=arguments, runs=runs, disk=disk))
    if name == "read-only file system":
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert_same(go_on(arguments, ranks=RANKS, runs=runs, disk=disk), whole(RANKS))

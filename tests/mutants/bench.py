"""Plants faults in a copy of the source and runs tests there: the user's files stay as they are.

A fault is caught when a test fails that passes without it. Knows pytest's exit codes.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from tests.mutants.catalogue import ROOT, Fault
from tests.project_files import project_files

CAUGHT, SURVIVED = "caught", "SURVIVED"
USELESS, INAPPLICABLE, BROKEN = "tests fail anyway", "inapplicable", "cannot be imported"
SLOW = "took too long"  # a test may on a busy machine, whatever was planted
TESTS_AT_ONCE = 30  # per run without a fault
TEST_S, RUN_S = 600, 1500  # limits for one test (by pytest-timeout) and for all tests of a fault
PASSED, FAILED, INTERRUPTED = 0, 1, 2  # pytest's exit codes; the last: a file cannot be imported
_OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR) ([^\s\[]+)", re.MULTILINE)  # without parameters
_PASSED = re.compile(r"\b(\d+) passed\b")


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a fault: which test caught it, or why none did, and in how many seconds.
    `confirmed`: that test passes without the fault."""

    name: str
    outcome: str
    by: str = ""
    seconds: float = 0.0
    state: str = ""
    confirmed: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """What pytest said: whether all tests passed (at least one), whether it finished, whether a
    file could not be imported, whether it took too long; the first failure, output and seconds."""

    passed: bool
    ended: bool
    broken: bool
    slow: bool
    failure: str
    output: str
    seconds: float


class Bench:
    """A copy of the tracked files, in a temporary folder that `close` removes."""

    def __init__(self, root: Path = ROOT) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="toolkit-mutants-"))
        self.copy = self._folder / "copy"
        # Real data lie beside the checkout, but not beside the copy.
        self._data = os.environ.get("TOOLKIT_REAL_DATA", str(root.parent / "shared" / "data"))
        self._runner: subprocess.Popen[str] | None = None
        self._child: int | None = None  # the process number of the pytest that runs
        self._writes = 0
        for name in project_files(root):
            place = self.copy / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, place)
        if (root / ".venv").exists():
            (self.copy / ".venv").symlink_to((root / ".venv").resolve())

    def close(self) -> None:
        """End what runs in the copy, and remove it."""
        self._end_child()
        if self._runner is not None and self._runner.stdin:
            self._runner.stdin.close()  # the runner ends with its input
            self._runner.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def try_fault(self, fault: Fault) -> Result:
        """Plant a fault, run its tests, and take it out again."""
        state = fault.state(self.copy)
        if problem := fault.problem(self.copy):
            return Result(fault.name, INAPPLICABLE, by=problem, state=state)
        path = self.copy / fault.file
        sound = path.read_text(encoding="utf-8")
        self._write(path, fault.planted(self.copy))
        try:
            run = self.run(fault.tests)
        finally:
            self._write(path, sound)
        outcome = SURVIVED if run.passed else BROKEN if run.broken else CAUGHT
        outcome = SLOW if run.slow else outcome
        return Result(fault.name, outcome, by=run.failure, seconds=run.seconds, state=state)

    def passing(self, tests: Collection[str]) -> tuple[set[str], set[str]]:
        """Which of these tests pass in the sound copy, and which do not. Many tests share a run,
        since most of a test's time goes into what it shares with its neighbours. A run that does
        not finish says nothing of its tests: they are in neither set."""
        there = sorted({test for test in tests if test.startswith("tests/")})
        passing, failing = set[str](), set(tests) - set(there)
        for start in range(0, len(there), TESTS_AT_ONCE):
            some = there[start : start + TESTS_AT_ONCE]
            run = self.run(some, options=("-rpfE", "--maxfail=1000"))
            if run.ended:
                words = _OUTCOME.findall(run.output)
                bad = {name for word, name in words if word != "PASSED"}
                good = {name for word, name in words if word == "PASSED"} - bad
                passing |= good.intersection(some)
                failing |= set(some) - good
        return passing, failing

    def run(self, tests: Sequence[str], *, options: Sequence[str] = ("-x", "-rfE")) -> Run:
        """Run tests in the copy, up to the first that fails."""
        # Examples that are the same each time, and without a deadline, which a busy machine misses.
        arguments = [*options, "--tb=short", f"--timeout={TEST_S}", "--hypothesis-profile=ci"]
        began = time.monotonic()
        code, output = self._pytest([*arguments, *tests])
        seconds = round(time.monotonic() - began, 1)
        num_passed = int(found[1]) if (found := _PASSED.search(output)) else 0
        failures = [name for word, name in _OUTCOME.findall(output) if word != "PASSED"]
        if code not in (PASSED, FAILED):  # the interpreter ended, or pytest could not begin
            last = [line for line in output.splitlines() if line.strip()][-1:]
            failures = failures or [f"pytest ended with {code}: {''.join(last)[:200]}"]
        passed = code == PASSED and num_passed > 0
        if not passed and not failures:
            failures = ["no test was run: all are skipped here"]
        slow = output.endswith(SLOW) or "Timeout (>" in output
        ended = code in (PASSED, FAILED) and not output.endswith(SLOW)
        failure = failures[0] if failures else ""
        return Run(passed, ended, code == INTERRUPTED, slow, failure, output, seconds)

    def _pytest(self, arguments: Sequence[str]) -> tuple[int, str]:
        """Its exit code and all that it printed."""
        if self._runner is None or self._runner.poll() is not None:
            self._runner = self._started()
        assert self._runner.stdin and self._runner.stdout
        output = self._folder / "output.txt"
        output.write_text("")
        asked = {"arguments": list(arguments), "output": str(output)}
        self._runner.stdin.write(json.dumps(asked) + "\n")
        self._runner.stdin.flush()
        self._child = int(self._runner.stdout.readline())
        ended = threading.Timer(RUN_S, self._end_child)
        ended.start()
        code = int(self._runner.stdout.readline())
        self._child, is_over = None, ended.finished.is_set()
        ended.cancel()
        return code, output.read_text(errors="replace") + (f"\n{SLOW}" if is_over else "")

    def _started(self) -> subprocess.Popen[str]:
        environ = {**os.environ, "PYTHONPATH": str(self.copy), "TOOLKIT_REAL_DATA": self._data}
        environ.setdefault("OMP_NUM_THREADS", "1")
        # As the conftest has it, and before anything is imported.
        environ["HF_HUB_OFFLINE"] = "1"
        if not Path("/dev/nvidiactl").exists():
            environ["TRITON_INTERPRET"] = "1"
        for name in [name for name in environ if name.startswith("PYTEST_")]:
            del environ[name]  # of the tests that test this
        return subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.runner"],
            cwd=self.copy,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def _end_child(self) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child, signal.SIGKILL)

    def _write(self, path: Path, text: str) -> None:
        """Write a file with a modification time of its own: Python compares seconds and size to
        tell whether a cached module is of this source, and faults may come within a second."""
        path.write_text(text, encoding="utf-8")
        self._writes += 1
        moment = time.time() - 10**6 + self._writes
        os.utime(path, (moment, moment))

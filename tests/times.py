"""Processor time of each test file: the table in tests/README.md, and a budget.

    make test-times                      # run all tests and write the table anew
    TOOLKIT_TEST_TIMES=check make test   # fail if a file takes half as much again as in the table

A test's time is that of its worker of pytest, of the processes it waited for, and of those that
belong to others meanwhile: children of the fork server (tests/forking) and jobs of the test cluster
(tests/slurm/supervisor.py), which tell theirs by tests/used.py.

Machines differ in speed. A run's factor is the median, over the files, of its time by the table's;
a file is beyond its budget when its time is more than half above the table's times this factor.
"""

import math
import os
import re
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.used import FOLDER, used_s

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- times -->", "<!-- end of times -->"
SWITCH = "TOOLKIT_TEST_TIMES"  # "write" or "check"
GROWTH, SLACK_S = 1.5, 20.0  # seconds that noise may add: 27 were seen in a file of 33
SHOWN = 40  # files, the longest
WHOLE = 0.9  # the share of the table's files that a run must have, to be held against it
ELSEWHERE = "collection and ends"
Times = dict[str, float]  # seconds of each file, by its path from the root


class Recorder:
    """A plugin of pytest, in each worker and in the process that commands them."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._folder = tempfile.TemporaryDirectory(prefix="toolkit-times-")
        os.environ[FOLDER] = self._folder.name
        self.times: Times = {}
        self._shared_s = 0.0  # the end of what all tests of this process shared

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        before = used_s()
        result = yield
        file = item.nodeid.partition("::")[0]
        spent = used_s() - before - self._shared_s
        self.times[file] = self.times.get(file, 0.0) + spent
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, nextitem: pytest.Item | None) -> Iterator[None]:
        before = used_s()
        result = yield
        # The test cluster and the fork servers end with the last test, and are not its own.
        if nextitem is None:
            self._shared_s = used_s() - before
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        if ELSEWHERE not in self.times:  # those who command workers run no tests
            self.times[ELSEWHERE] = used_s() - sum(self.times.values())
        # xdist sends this to the process that commands the workers.
        if (output := getattr(self._config, "workeroutput", None)) is not None:
            output["times"] = self.times

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        for file, seconds in getattr(node, "workeroutput", {}).get("times", {}).items():
            self.times[file] = self.times.get(file, 0.0) + seconds


class Reporter:
    """Writes the table, or holds the run against it, when all is done."""

    def __init__(self, recorder: Recorder, *, wanted: str) -> None:
        self._recorder, self._wanted = recorder, wanted
        self._lines: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        times = self._recorder.times
        if self._wanted == "write":
            if exitstatus == 0:
                README.write_text(with_table(README.read_text(encoding="utf-8"), times))
            return
        self._lines = excesses(times, budget=table_of(README.read_text(encoding="utf-8")))
        if self._lines and exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        times = self._recorder.times
        total = sum(times.values())
        terminalreporter.write_sep("=", f"{total / 60:.1f} minutes of processor time")
        for file in sorted(times, key=lambda file: -times[file])[:SHOWN]:
            terminalreporter.write_line(f"{times[file]:8.1f} s  {file}")
        for line in self._lines:
            terminalreporter.write_line(f"over budget: {line}")


def configure(config: pytest.Config) -> None:
    """Register the plugins, if the environment asks for them."""
    if not (wanted := os.environ.get(SWITCH)):
        return
    if wanted not in ("write", "check"):
        raise pytest.UsageError(f"{SWITCH}={wanted}: valid are write and check")
    recorder = Recorder(config)
    config.pluginmanager.register(recorder)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Reporter(recorder, wanted=wanted))


def order(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first, and new files before them: workers that take a file
    at a time then end together."""
    table = table_of(README.read_text(encoding="utf-8"))
    items.sort(key=lambda item: -table.get(item.nodeid.partition("::")[0], math.inf))


def table_of(readme: str) -> Times:
    """The table that the README holds; empty without one."""
    part = readme.partition(BEGIN)[2].partition(END)[0]
    rows = re.findall(r"^\| `?([^|`]+?)`? \| +([0-9.]+) \|$", part, re.MULTILINE)
    return {file: float(seconds) for file, seconds in rows}


def with_table(readme: str, times: Mapping[str, float]) -> str:
    """The README with this table in the place of the one it had."""
    head, begin, rest = readme.partition(BEGIN)
    if not begin or END not in rest:
        raise pytest.UsageError(f"{README} has no {BEGIN} and {END} for the table to stand between")
    rows = sorted(times.items(), key=lambda one: -one[1])
    lines = ["| file | seconds |", "|---|---:|"]
    lines += [f"| {name(file)} | {seconds:.1f} |" for file, seconds in rows]
    lines.append(f"| all | {sum(times.values()):.1f} |")
    return f"{head}{begin}\n" + "\n".join(lines) + f"\n{END}" + rest.partition(END)[2]


def name(file: str) -> str:
    return file if file == ELSEWHERE else f"`{file}`"


def excesses(times: Mapping[str, float], *, budget: Mapping[str, float]) -> list[str]:
    """A line for each file beyond its budget, which is `SLACK_S` for a new file; none for a part of
    the suite."""
    budget = {file: seconds for file, seconds in budget.items() if file != "all"}
    both = [file for file in budget if file in times]
    if not both or len(both) < WHOLE * len(budget):
        return []
    # The quick files have times of a tenth of a second, which say nothing of the machine.
    telling = sorted(both, key=lambda file: -budget[file])[: (len(both) + 1) // 2]
    factor = statistics.median(times[file] / max(budget[file], 0.1) for file in telling)
    lines = []
    for file, seconds in sorted(times.items()):
        allowed = GROWTH * factor * budget.get(file, 0.0) + SLACK_S
        if seconds > allowed:
            new = "" if file in budget else "; it is not in the table: make test-times"
            lines.append(
                f"{file} took {seconds:.0f} s of processor time; {allowed:.0f} s are allowed{new}"
            )
    return lines

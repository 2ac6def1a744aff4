"""The table of processor time counts what tests use through others, and its budget fails a run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import times
from tests.conftest import ROOT

EMPTY = f"# Tests\n\n{times.BEGIN}\n{times.END}\nmore\n"
CONFTEST = """\
from pathlib import Path
from typing import Any
from tests import times
times.README = Path(__file__).with_name("README.md")
def pytest_configure(config):
    times.configure(config)
import time
import pytest
@pytest.fixture(scope="session", autouse=True)
def shared():
    yield
    until = time.process_time() + 0.6
    while time.process_time() < until: pass
"""
# Waits for one child, and starts another, whose time a process of its own tells.
BUSY = """\
import os, subprocess, sys
import pytest
BURN = "import time\\nwhile time.process_time() < {seconds}: pass"
TELL = (
    "import subprocess, sys; from tests.used import tell; "
    "subprocess.run([sys.executable, '-c', {burn!r}]); tell()"
)
@pytest.mark.parametrize("case", range(2))
def test_busy(case):
    subprocess.run([sys.executable, "-c", BURN.format(seconds=0.3)], check=True)
    teller = subprocess.Popen([sys.executable, "-c", TELL.format(burn=BURN.format(seconds=0.4))])
    os.waitid(os.P_PID, teller.pid, os.WEXITED | os.WNOWAIT)  # ended, and never waited for
    teller.returncode = 0
"""


def run_suite(folder: Path, *, wanted: str, workers: int = 0) -> tuple[int, str]:
    """The exit code and output of a suite of its own."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), times.SWITCH: wanted}
    for name in [name for name in environ if name.startswith("PYTEST_")]:
        del environ[name]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    done = subprocess.run(
        [*command, *(["-n", str(workers)] if workers else []), str(folder)],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "README.md").write_text(EMPTY)
    (tmp_path / "test_busy.py").write_text(BUSY)
    (tmp_path / "test_idle.py").write_text("def test_idle():\n    pass\n")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_time_of_waited_and_of_told_children_is_the_file_s(suite: Path, workers: int) -> None:
    code, said = run_suite(suite, wanted="write", workers=workers)
    assert code == 0, said
    readme = (suite / "README.md").read_text()
    found = times.table_of(readme)
    assert found["test_busy.py"] > 2 * (0.3 + 0.4)
    assert found["test_idle.py"] < 0.5, "what all tests share ends with the last one"
    assert found["all"] == pytest.approx(sum(found.values()) - found["all"], abs=0.2)
    assert found[times.ELSEWHERE] >= 0
    assert readme.startswith("# Tests\n") and readme.endswith("\nmore\n")


def test_a_file_beyond_its_budget_fails_the_run(suite: Path) -> None:
    (suite / "conftest.py").write_text(CONFTEST + "times.SLACK_S = 1.0\n")
    table = {"test_idle.py": 0.1, "test_busy.py": 0.1, times.ELSEWHERE: 1000.0, "all": 1000.2}
    table |= {f"test_{number}.py": 0.0 for number in range(30)}  # 30 of them are of no account
    for number in range(30):
        (suite / f"test_{number}.py").write_text("def test_idle():\n    pass\n")
    (suite / "README.md").write_text(times.with_table(EMPTY, table))
    code, said = run_suite(suite, wanted="check", workers=2)
    assert code == 1 and "over budget: test_busy.py took" in said, said
    assert "is not in the table" not in said
    del table["test_busy.py"]
    (suite / "README.md").write_text(times.with_table(EMPTY, table))
    code, said = run_suite(suite, wanted="check")
    assert code == 1 and "it is not in the table: make test-times" in said, said
    assert said.count("over budget") == 1
    (suite / "test_busy.py").write_text("def test_idle():\n    pass\n")
    code, said = run_suite(suite, wanted="check")
    assert code == 0, "a new file has some seconds"


def test_the_longest_files_come_first_and_keep_the_order_of_their_tests(
    suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Named:
        def __init__(self, nodeid: str) -> None:
            self.nodeid = nodeid

    table = {"tests/a.py": 1.0, "tests/b.py": 5.0, "all": 6.0}
    (suite / "README.md").write_text(times.with_table(EMPTY, table))
    monkeypatch.setattr(times, "README", suite / "README.md")
    items: list[Any] = [
        Named(f"tests/{name}") for name in ("a.py::1", "b.py::2", "b.py::1", "c.py::1")
    ]
    times.order(items)
    assert [item.nodeid[6:] for item in items] == ["c.py::1", "b.py::2", "b.py::1", "a.py::1"]


def test_a_slow_machine_is_no_excess_and_a_part_is_not_compared() -> None:
    budget = {f"tests/test_{n}.py": 100.0 for n in range(10)} | {"all": 1000.0}
    slow = {file: 3 * seconds for file, seconds in budget.items() if file != "all"}
    assert times.excesses(slow, budget=budget) == []
    grown = {**slow, "tests/test_3.py": 3 * 170.0}
    assert [line.split()[0] for line in times.excesses(grown, budget=budget)] == ["tests/test_3.py"]
    part = {"tests/test_3.py": 10_000.0, "tests/test_new.py": 1.0}
    assert times.excesses(part, budget=budget) == []


def test_a_readme_without_a_place_and_a_wrong_switch_are_refused(
    monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    with pytest.raises(pytest.UsageError, match="no <!-- times -->"):
        times.with_table("# Tests\n", {})
    monkeypatch.setenv(times.SWITCH, "yes")
    with pytest.raises(pytest.UsageError, match="yes: valid are write and check"):
        times.configure(pytestconfig)

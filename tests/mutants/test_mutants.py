"""The faults can be planted, their tests are there, and the bench tells what is caught."""

from collections.abc import Iterator

import pytest

from tests.mutants import bench as bench_module
from tests.mutants.bench import CAUGHT, INAPPLICABLE, SURVIVED, Bench
from tests.mutants.catalogue import ROOT, Fault, all_faults, chosen

PACKAGES = ("text", "model", "training", "parallel", "cluster", "encoding", "evaluation", "domain")
SHARED = ("base", "settings", "command_line", "runs", "launching", "report")
# Each takes a second or two.
SHORT = ("a-piece-that-comes-back-is-dealt-last", "tasks-of-an-array-are-counted-one-too-few")
FAULTS = {fault.name: fault for fault in all_faults()}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_every_fault_can_be_planted_and_its_tests_are_there() -> None:
    """Whoever rewrites the source of a fault, or renames its test, must update the list."""
    problems = {name: fault.problem(ROOT) for name, fault in FAULTS.items()}
    missing = {name: fault.missing_tests(ROOT) for name, fault in FAULTS.items()}
    assert {name: why for name, why in problems.items() if why} == {}
    assert {name: tests for name, tests in missing.items() if tests} == {}


def test_no_package_is_without_faults() -> None:
    files = [fault.file for fault in FAULTS.values()]
    assert len(files) >= 200
    for folder in (*(f"toolkit/{package}/" for package in PACKAGES), "data_scripts/"):
        assert sum(file.startswith(folder) for file in files) >= 3, folder
    shared = [file for file in files if file.count("/") == 1 or file.split("/")[1] in SHARED]
    assert len(shared) >= 20, "commands, scripts, and what they share"


@pytest.mark.parametrize("name", SHORT)
def test_a_short_fault_is_caught_and_gone_afterwards(name: str, bench: Bench) -> None:
    fault = FAULTS[name]
    assert bench.try_fault(fault).outcome == CAUGHT
    assert (bench.copy / fault.file).read_text() == (ROOT / fault.file).read_text()


@pytest.mark.parametrize(
    ("old", "new", "outcome"),
    [
        ("is dealt before all others", "is dealt first", SURVIVED),
        ("is no text of it", "", INAPPLICABLE),
    ],
)
def test_what_no_test_notices_is_told(old: str, new: str, outcome: str, bench: Bench) -> None:
    tests = ("tests/cluster/test_queue.py",)
    fault = Fault("made", "toolkit/cluster/dealing.py", old=old, new=new, tests=tests)
    assert bench.try_fault(fault).outcome == outcome


def test_what_fails_anyway_is_told_and_the_copy_is_what_runs(bench: Bench) -> None:
    """The copy, and not the source that the environment was installed from."""
    lines = [
        "import pytest, toolkit",
        f"def test_it(): assert {str(bench.copy)!r} in toolkit.__file__",
    ]
    lines += ["def test_other(): assert False", "def test_third(): pytest.skip('no such thing')"]
    (bench.copy / "tests" / "test_made.py").write_text("\n".join(lines) + "\n")
    tests = [f"tests/test_made.py::test_{name}" for name in ("it", "other", "third")]
    assert bench.passing(tests) == ({tests[0]}, set(tests[1:]))
    gone = ["tests/test_made.py::test_gone"]  # pytest does not begin: that says nothing
    assert bench.passing([*tests, *gone]) == (set(), set())


def test_tests_that_take_too_long_are_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "RUN_S", 0.2)
    found = bench.run(["tests/cluster/test_dealing.py"])
    assert found.slow
    assert not found.passed


def test_faults_are_chosen_by_name_file_test_and_list() -> None:
    every = list(FAULTS.values())
    (one,) = chosen(every, only=[SHORT[0]])
    assert one in chosen(every, only=[one.file])
    assert one in chosen(every, only=["tests/cluster/test_dealing.py"])
    assert one in chosen(every, only=["cluster"])
    assert chosen(every, only=[]) == every
    with pytest.raises(ValueError, match="no name, file, test or list"):
        chosen(every, only=["nothing"])

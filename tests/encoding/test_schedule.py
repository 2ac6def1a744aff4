"""The three ways to share units: nothing is lost, nothing is done twice, who comes and goes may.

Real processes on a real directory, and real MPI ranks; what they do with a unit takes no model.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, run
from tests.encoding.making import output_of
from tests.encoding.worker import records_of, vectors_of
from tests.mpi import mpi_command
from toolkit.base.layout import LEASE_DIR
from toolkit.cluster.leases import Leases
from toolkit.cluster.topology import detect
from toolkit.encoding import schedule
from toolkit.encoding.output import SUFFIXES, Output
from toolkit.encoding.schedule import Alone, Claims
from toolkit.encoding.store import VectorStore
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EmbedRecipe

ROWS, UNIT_ROWS = 72, 3
NUM_UNITS = ROWS // UNIT_ROWS
Worker = subprocess.Popen[str]


def command(way: str, directory: Path, **settings: object) -> list[str]:
    given = {"rows": ROWS, "unit_rows": UNIT_ROWS, "unit_s": 0.01, **settings}
    return [sys.executable, "-m", "tests.encoding.worker", way, str(directory), json.dumps(given)]


@contextlib.contextmanager
def started(commands: Sequence[list[str]]) -> Iterator[list[Worker]]:
    """These processes; what is left of them at the end is killed."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen(
            line, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for line in commands
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
            worker.communicate()


def units_of(printed: str) -> list[int]:
    return [int(number) for number in re.findall(r"^unit (\d+) by 0$", printed, flags=re.MULTILINE)]


def end(worker: Worker, *, code: int = 0) -> list[int]:
    """The units that a worker did until its end."""
    printed = worker.communicate(timeout=60)[0]
    assert worker.returncode == code, printed
    return units_of(printed)


def wait_for_unit(worker: Worker) -> None:
    assert worker.stdout
    while line := worker.stdout.readline():
        if line.startswith("unit"):
            return
    raise AssertionError("it ended without a unit")


def assert_whole(directory: Path) -> None:
    """Rows and order exact, every digest right, no lease left."""
    found = VectorStore(directory, verify=True)
    np.testing.assert_array_equal(found.vectors(), vectors_of(0, ROWS))
    assert found.ids() == [f"id{n}" for n in range(ROWS)]
    assert not (directory / LEASE_DIR).exists()


@pytest.mark.parametrize(("way", "workers"), [("alone", 1), ("claim", 1), ("claim", 3)])
def test_every_unit_is_done_once(way: str, workers: int, tmp_path: Path) -> None:
    firsts = [NUM_UNITS * n // workers for n in range(workers)]
    with started([command(way, tmp_path, first=first) for first in firsts]) as crew:
        done = [end(worker) for worker in crew]
    assert Counter(n for units in done for n in units) == Counter(range(NUM_UNITS))
    assert_whole(tmp_path)


def mpi(ranks: Sequence[list[str]], *, code: int = 0) -> list[list[int]]:
    """The units that each rank did."""
    printed = run(mpi_command(ranks), code=code, timeout_s=90)
    found = re.findall(r"unit (\d+) by (\d)", printed)
    return [[int(n) for n, rank in found if int(rank) == r] for r in range(len(ranks))]


@pytest.mark.parametrize("ranks", [1, 3])
def test_mpi_deals_every_unit_once(ranks: int, tmp_path: Path) -> None:
    """Rank 0 deals and works."""
    done = mpi([command("mpi", tmp_path)] * ranks)
    assert Counter(n for units in done for n in units) == Counter(range(NUM_UNITS))
    assert done[0]
    assert_whole(tmp_path)


def test_it_is_not_over_before_every_rank_has_checked_its_share(tmp_path: Path) -> None:
    """All is there, but a unit is damaged that the late rank is to check."""
    mpi([command("mpi", tmp_path)])
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "units" / "00018.safetensors").write_bytes(b"no")
    late = command("mpi", tmp_path, check=[12, NUM_UNITS], late_s=2)
    done = mpi([command("mpi", tmp_path, check=[0, 12]), late])
    assert done[0] + done[1] == [18]
    assert_whole(tmp_path)
    made, told = tmp_path / "units" / "00018.json", tmp_path / "manifest.json"
    assert told.stat().st_mtime_ns > made.stat().st_mtime_ns


def test_a_slow_rank_gets_fewer(tmp_path: Path) -> None:
    fast, slow = command("mpi", tmp_path, unit_s=0.2), command("mpi", tmp_path, unit_s=1.0)
    counts = [len(units) for units in mpi([fast, slow, fast])]
    assert sum(counts) == NUM_UNITS
    assert 0 < counts[1] < min(counts[0], counts[2]) / 2
    assert_whole(tmp_path)


def test_a_unit_that_one_rank_cannot_do_is_dealt_to_another(tmp_path: Path) -> None:
    """A rank that fails ends itself, and nobody else."""
    fails = command("mpi", tmp_path, fail=list(range(NUM_UNITS)))
    done = mpi([command("mpi", tmp_path), fails], code=1)
    assert len(done[1]) == 1
    assert sorted(done[0]) == list(range(NUM_UNITS))
    assert_whole(tmp_path)


def test_rank_0_may_fail_too_and_deals_on(tmp_path: Path) -> None:
    fails = command("mpi", tmp_path, fail=list(range(NUM_UNITS)))
    done = mpi([fails, command("mpi", tmp_path, unit_s=0.05)], code=1)
    assert len(done[0]) == 1
    assert sorted(done[1]) == list(range(NUM_UNITS))
    assert not (tmp_path / "manifest.json").exists()  # rank 0 writes it
    mpi([command("mpi", tmp_path)])
    assert_whole(tmp_path)


def test_a_unit_that_fails_everywhere_ends_the_run_by_name(tmp_path: Path) -> None:
    """After three ranks are lost to it, the rest is done by the fourth all the same."""
    printed = run(mpi_command([command("mpi", tmp_path, fail=[5])] * 4), code=1, timeout_s=90)
    assert printed.count("unit 5 failed") == 3
    assert "1 units failed on every rank that was asked" in printed
    left = output_of(tmp_path, rows=ROWS, unit_rows=UNIT_ROWS).unfinished()
    assert [unit.number for unit in left] == [5]


def test_a_rank_that_hangs_is_noticed_and_its_unit_dealt_again(tmp_path: Path) -> None:
    """Of a killed one there is nothing to test: MPICH ends the job then, in spite of
    -disable-auto-cleanup. The one that hangs finds rank 0 gone when it wakes."""
    settings = {"unit_s": 0.1, "lease_s": 3.0}
    lives = command("mpi", tmp_path, **settings)
    hangs = command("mpi", tmp_path, hang_at=2, hang_s=12, **settings)
    printed = run(mpi_command([lives, hangs, lives]), code=1, timeout_s=60)
    assert_whole(tmp_path)
    assert "rank 1 is silent: 1 unit(s) dealt again" in printed
    assert "rank 0 has not answered for 3 s; it is lost" in printed
    done = Counter(map(int, re.findall(r"unit (\d+) by", printed)))
    assert sorted((done - Counter(range(NUM_UNITS))).values()) == [1]


def test_all_ranks_go_when_rank_0_is_told_to(tmp_path: Path) -> None:
    stopped = command("mpi", tmp_path, unit_s=0.1, stop_after_s=0.5)
    printed = run(
        mpi_command([stopped, command("mpi", tmp_path, unit_s=0.1)]), code=1, timeout_s=60
    )
    assert len(re.findall(r"\d+ left, stopped: True", printed)) == 2
    mpi([command("mpi", tmp_path)] * 3)
    assert_whole(tmp_path)


def test_another_rank_than_0_may_go(tmp_path: Path) -> None:
    stopped = command("mpi", tmp_path, unit_s=0.1, stop_after_s=0.3)
    done = mpi([command("mpi", tmp_path, unit_s=0.1), stopped], code=1)
    assert len(done[1]) < len(done[0])
    assert_whole(tmp_path)


def test_workers_may_come_and_go(tmp_path: Path) -> None:
    """One is told to go, one is killed, one comes late; lease_s is long: nobody may wait for it,
    since all are processes of this host."""
    settings = {"unit_s": 0.2, "lease_s": 60.0}
    lines = [command("claim", tmp_path, first=12, **settings)]
    lines += [command("claim", tmp_path, stop_after_s=1.0, **settings)]
    lines += [command("claim", tmp_path, first=6, **settings)]
    began = time.monotonic()
    with started(lines) as crew, started(lines[:1]) as late:
        wait_for_unit(crew[2])
        crew[2].kill()
        end(crew[1], code=1)
        for worker in (crew[0], late[0]):
            end(worker)
    assert_whole(tmp_path)
    assert time.monotonic() - began < 30


def test_a_hung_worker_is_taken_over_and_drops_what_it_made(tmp_path: Path) -> None:
    """Stopped in the middle of a unit until the others are done, then let on."""
    with started([command("claim", tmp_path, unit_s=0.5, lease_s=1.0)]) as (hung,):
        wait_for_unit(hung)
        os.kill(hung.pid, signal.SIGSTOP)
        with started([command("claim", tmp_path, lease_s=1.0)] * 2) as crew:
            done = [n for worker in crew for n in end(worker)]
        assert sorted(done) == list(range(NUM_UNITS))
        old = {path: path.stat().st_mtime_ns for path in (tmp_path / "units").iterdir()}
        os.kill(hung.pid, signal.SIGCONT)
        end(hung)
        assert {path: path.stat().st_mtime_ns for path in old} == old
    assert_whole(tmp_path)


def test_who_has_nothing_to_do_waits_and_finishes_for_a_killed_one(tmp_path: Path) -> None:
    """The last unit's owner dies while it works; the other has waited for it."""
    slow = command("claim", tmp_path, first=NUM_UNITS - 1, unit_s=600.0)
    with started([slow]) as (victim,):
        wait_for_unit(victim)
        with started([command("claim", tmp_path)]) as (other,):
            output = output_of(tmp_path, rows=ROWS, unit_rows=UNIT_ROWS)
            while len(output.unfinished()) > 1:
                time.sleep(0.02)
            time.sleep(0.5)
            assert other.poll() is None
            victim.kill()
            assert end(other)[-1] == NUM_UNITS - 1
    assert_whole(tmp_path)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return output_of(tmp_path, rows=ROWS, unit_rows=UNIT_ROWS)


def test_a_share_is_checked_before_and_only_what_is_damaged_is_made_again(output: Output) -> None:
    for unit in output.units:
        vectors_RD = vectors_of(unit.start, unit.stop)
        output.write(unit, vectors_RD, records_of(unit))
    damaged = [output.units[3], output.units[8]]
    for unit in damaged:
        (output.directory / "units" / f"{unit.name}.safetensors").write_bytes(b"no")
    with Leases(output.directory / LEASE_DIR, lease_s=60) as leases:
        work = Claims(output, leases=leases, first=0, should_stop=lambda: False)
        work.check(output.units[:5])
        assert output.unfinished() == damaged[:1]
        alone = Alone(output, should_stop=lambda: False)
        alone.check(output.units)
        assert alone.num_left() == 2
        assert [alone.take(), alone.take(), alone.take()] == [*damaged, None]


def test_a_worker_alone_takes_every_unit_once_from_its_own_on(output: Output) -> None:
    """What that costs: tests/benchmarks/bench_scheduling.py."""
    with Leases(output.directory / LEASE_DIR, lease_s=60) as leases:
        work = Claims(output, leases=leases, first=7, should_stop=lambda: False)
        taken = []
        while unit := work.take():
            taken.append(unit)
            assert work.holds(unit)
            (output.directory / "units").mkdir(exist_ok=True)
            for suffix in SUFFIXES:
                (output.directory / "units" / f"{unit.name}{suffix}").touch()
            work.finish(unit)
    assert [unit.number for unit in taken] == [*range(7, NUM_UNITS), *range(7)]


@pytest.mark.parametrize(
    ("environ", "overrides", "way"),
    [
        ({}, [], "claim"),
        ({"SLURM_ARRAY_TASK_ID": "0"}, [], "claim"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, [], "mpi"),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, [], "claim"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, ["schedule=claim"], "claim"),
        ({}, ["schedule=alone"], "alone"),
        ({}, ["schedule=mpi"], "mpi"),
    ],
)
def test_the_launcher_or_the_recipe_decides(
    environ: dict[str, str], overrides: list[str], way: str
) -> None:
    places = {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    recipe = load_recipe("tiny_embed", overrides=overrides)
    assert isinstance(recipe, EmbedRecipe)
    several = environ and {**places, **environ, "MASTER_ADDR": "a", "MASTER_PORT": "9"}
    assert schedule.way_of(recipe, detect(several)) == way

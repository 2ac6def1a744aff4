"""An encoding on a real SLURM: an array that loses a node, and MPI over four nodes."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import contents
from tests.mpi import mpi_environ
from tests.slurm.cluster import Cluster
from tests.slurm.test_jobs import ENVIRON, REPOSITORY
from toolkit.encoding.store import VectorStore

Door = Callable[..., str]


@pytest.fixture(scope="module")
def overrides(shards: Path, tiny_model: Path) -> list[str]:
    """Some tens of seconds of work in 85 units."""
    settings = ["corpus.unit_rows=2", "encoder.max_tokens=512", "lease_s=5"]
    return [f"encoder.model={tiny_model}", f"corpus.input={shards}", *settings]


def wait_for_units(output: Path, *, number: int, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while len(list((output / "units").glob("*.json"))) < number:
        assert time.monotonic() < deadline, "no unit was written"
        time.sleep(0.05)


def logs(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace")[-1500:] for path in folder.glob("*.log"))


@pytest.mark.slow
def test_an_array_that_loses_a_node_loses_nothing(
    slurm: Cluster, door: Door, overrides: list[str], tmp_path: Path
) -> None:
    """The others do what it had; its task is requeued and finds everything done."""
    array = tmp_path / "array"
    job = slurm.submit(
        *("--cpus-per-task=1", "--time=10", f"--output={tmp_path}/%a.log", "slurm/embed_corpus.sh"),
        *(*overrides, f"output_dir={array}"),
        environ=ENVIRON | {"RECIPE": "tiny_embed"},
        cwd=REPOSITORY,
    )
    wait_for_units(array, number=4)
    (lost,) = [task["ArrayTaskId"] for task in slurm.jobs(job) if task["NodeList"] == "n2"]
    slurm.kill_node("n2")
    try:
        deadline = time.monotonic() + 180
        while not (array / "manifest.json").exists():
            assert time.monotonic() < deadline, logs(tmp_path)
            time.sleep(0.2)
        # The others may be done before SLURM notices: a node that is back by then keeps its task.
        slurm.wait_state(f"{job}_{lost}", state="PENDING", timeout_s=90)
    finally:
        slurm.start_node("n2")
    slurm.wait_idle()
    slurm.start_now(f"{job}_{lost}")
    assert slurm.wait(job, timeout_s=120) == "COMPLETED", logs(tmp_path)
    assert slurm.job(f"{job}_{lost}")["Restarts"] == "1"
    assert " rows in the source = " in (tmp_path / f"{lost}.log").read_text()
    door("encode", "tiny_embed", *overrides, f"output_dir={tmp_path / 'one'}")
    VectorStore(array, verify=True)
    assert contents(array / "units") == contents(tmp_path / "one" / "units")


@pytest.mark.slow
def test_mpi_over_four_nodes_writes_the_same_bytes(
    slurm: Cluster, door: Door, overrides: list[str], tmp_path: Path
) -> None:
    mpiexec = Path(sys.executable).with_name("mpiexec")
    given = " ".join(f"{name}={value}" for name, value in mpi_environ().items())
    line = f"{sys.executable} -m toolkit.encode tiny_embed output_dir={tmp_path}/mpi"
    job = slurm.submit(
        *("--nodes=4", "--ntasks-per-node=1", "--time=10", f"--output={tmp_path}/mpi.log"),
        "--wrap",
        f"{given} exec {mpiexec} -n 4 {line} {' '.join(overrides)}",
        environ={"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY,
    )
    assert slurm.wait(job, timeout_s=240) == "COMPLETED", logs(tmp_path)
    assert "of 4 (mpi)" in logs(tmp_path)
    door("encode", "tiny_embed", *overrides, f"output_dir={tmp_path / 'one'}")
    VectorStore(tmp_path / "mpi", verify=True)
    assert contents(tmp_path / "mpi") == contents(tmp_path / "one")

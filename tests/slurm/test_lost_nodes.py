"""Nodes that failed are left out of a job's next start, on the real SLURM; no model, seconds."""

import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.test_cluster import wait_for
from toolkit.cluster.exclusion import excluded_nodes

pytestmark = pytest.mark.usefixtures("idle")
REPOSITORY = Path(__file__).parents[2]

# Two ranks. In the first life the second one is killed, or says that its node is broken; in the
# next one the first is told to stop, and has been told that a node is slow.
PROGRAM = """
import os, signal, sys, time
from toolkit.cluster.exclusion import exclusion_command
from toolkit.cluster.preempt import StopSignal, requeue_command
from toolkit.cluster.topology import detect
from toolkit.cluster.watchdog import Job, Watchdog
from toolkit.base.errors import NodeFault

place, life = detect(os.environ), int(os.environ.get("SLURM_RESTART_COUNT", 0))
os.write(1, f"life {life} on {place.node_name}\\n".encode())
job = Job(
    place.world_size, place.main_address, place.main_port, 0.5, on_loss=requeue_command(os.environ),
    on_lost_node=exclusion_command(os.environ), name=f"{place.job_id}.{life}",
)
with StopSignal(os.environ) as stop:
    with Watchdog(job, rank=place.rank, host=place.node_name) as watchdog:
        watchdog.enter("load", step=0)
        time.sleep(1)
        if life == 0 and place.rank == 1:
            if "broken" in sys.argv:
                raise NodeFault("its device multiplies wrongly")
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60 if life == 0 else 0)
    if life == 1:
        stop.avoid = ["n4"]
        os.kill(os.getpid(), signal.SIGUSR2)
        stop.leave(os.environ, leads=place.rank == 0)
"""


def submit(slurm: Cluster, folder: Path, *flags: str, argument: str = "") -> str:
    """The program on two nodes."""
    (folder / "program.py").write_text(PROGRAM)
    run = f"exec srun --kill-on-bad-exit=1 {sys.executable} -S {folder}/program.py {argument}"
    return slurm.submit(
        *("-N2", "--ntasks-per-node=1", "--open-mode=append", "-o", str(folder / "log"), *flags),
        *("--wrap", run),
        environ={"PYTHONPATH": str(REPOSITORY)},
    )


def test_a_lost_node_is_left_out_of_the_next_start_and_no_more_than_a_quarter(
    slurm: Cluster, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    job = submit(slurm, tmp_path, "--requeue", "-w", "n2,n3")
    wait_for(log, text="life 0 on", count=2)
    wait_for(log, text="the job asks for particular nodes")  # so nothing is left out
    slurm.start_now(job)
    slurm.run(["scancel", job], check=True)
    slurm.wait_idle()
    log.unlink()

    job = submit(slurm, tmp_path, "--requeue")
    wait_for(log, text="is left out of its next start")
    slurm.start_now(job)
    assert "life 0 on n2\n" in log.read_text()
    assert slurm.job(job)["ExcNodeList"] == excluded_nodes(job) == "n2"
    assert f"watchdog: job {job}: n2 is left out of its next start\n" in log.read_text()
    why = "1 of 4 are left out already, at most 1 may be"
    wait_for(log, text=f"watchdog: job {job}: n4 is not left out of its next start: {why}\n")
    slurm.start_now(job)
    assert slurm.wait(job) == "COMPLETED", log.read_text()
    text = log.read_text()
    assert text.count("life 1 on") == text.count("life 2 on") == 2
    assert "life 1 on n2" not in text and "life 2 on n2" not in text
    assert slurm.job(job)["Restarts"] == "2"


def test_a_broken_node_is_left_out_of_the_whole_chain(slurm: Cluster, tmp_path: Path) -> None:
    log, chained = tmp_path / "log", ("--no-requeue", "--export=ALL,TOOLKIT_CHAIN=1")
    first = submit(slurm, tmp_path, *chained, argument="broken")
    second = slurm.submit(f"--dependency=afterany:{first}", "--wrap", "sleep 30")
    third = slurm.submit(f"--dependency=afterany:{second}", "--wrap", "true")
    other = slurm.submit(f"--dependency=afterok:{second}", "--wrap", "true")
    assert slurm.wait(first) == "FAILED"
    text = log.read_text()
    line = "rank 1 on host n2 cannot go on at step 0, phase load: its device multiplies wrongly"
    assert f"watchdog: {line}\n" in text
    assert [slurm.job(one)["ExcNodeList"] for one in (second, third)] == ["n2", "n2"]
    assert slurm.job(other)["ExcNodeList"] == "(null)"

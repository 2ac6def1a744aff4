"""The test cluster itself: what the other tests take for granted about its SLURM."""

import os
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import NODES, Cluster, ClusterError
from tests.slurm.supervisor import descendants

REPOSITORY = Path(__file__).parents[2]

# Says so when USR2 comes, and ends.
CATCHER = """
import os, signal, sys, time
# One write each: the pieces of a print would interleave with another rank's.
say = lambda text: os.write(1, f"{text}\\n".encode())
signal.signal(signal.SIGUSR2, lambda *_: (say(f"caught {os.environ['SLURM_PROCID']}"), sys.exit()))
say("ready")
time.sleep(120)
"""


def wait_for(path: Path, *, text: str, count: int = 1, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists() or path.read_text().count(text) < count:
        assert time.monotonic() < deadline, path.read_text() if path.exists() else "no output"
        time.sleep(0.05)


def test_four_nodes_are_idle_and_run_a_trivial_job(slurm: Cluster) -> None:
    slurm.wait_idle()
    assert slurm.nodes_idle() == list(NODES)
    assert slurm.wait(slurm.submit("--wrap", "true")) == "COMPLETED"


def test_a_step_runs_on_every_node_with_a_gpu_each(slurm: Cluster) -> None:
    show = "echo $SLURM_NODEID $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"
    done = slurm.run(["srun", "-N4", "--gpus-per-node=1", "bash", "-c", show], check=True)
    expected = ["0 n1 0", "1 n2 0", "2 n3 0", "3 n4 0"]
    assert sorted(done.stdout.splitlines()) == expected
    too_many = slurm.run(["srun", "-N1", "--gpus-per-node=2", "true"])
    assert too_many.returncode != 0


def test_places_of_real_ranks_and_of_the_batch_script(slurm: Cluster, tmp_path: Path) -> None:
    program = (
        "import os; from toolkit.cluster.topology import detect; t = detect(os.environ);"
        "say = (t.launcher, t.rank, t.world_size, t.local_rank, t.local_world_size, t.num_nodes,"
        "t.node_name, t.main_address, t.main_port);"
        # One write: with an unbuffered Python, the pieces of a print would interleave.
        "os.write(1, (chr(32).join(map(str, say)) + chr(10)).encode())"
    )
    python = f"{sys.executable} -c '{program}'"
    job = slurm.submit(
        *("-N2", "-n3", "-o", str(tmp_path / "log"), "--wrap", f"{python}; echo; srun {python}"),
        environ={"PYTHONPATH": str(REPOSITORY)},
    )
    assert slurm.wait(job) == "COMPLETED"
    batch, _, *ranks = (tmp_path / "log").read_text().splitlines()
    assert batch.split()[:7] == ["alone", "0", "1", "0", "1", "1", "n1"]
    port = 20000 + int(job) * 31 % 12000
    assert sorted(ranks) == [  # the node names do not resolve here
        f"slurm 0 3 0 2 2 n1 127.0.0.1 {port}",
        f"slurm 1 3 1 2 2 n1 127.0.0.1 {port}",
        f"slurm 2 3 0 1 2 n2 127.0.0.1 {port}",
    ]


def test_a_job_array(slurm: Cluster, tmp_path: Path) -> None:
    task = "echo $SLURM_ARRAY_TASK_ID of $SLURM_ARRAY_TASK_COUNT; test $SLURM_ARRAY_TASK_ID != 6"
    job = slurm.submit("--array=5-7", "-o", f"{tmp_path}/%a", "--wrap", task)
    assert slurm.wait(job) == "FAILED"
    assert [slurm.wait(f"{job}_{i}") for i in (5, 6, 7)] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert [(tmp_path / f"{i}").read_text() for i in (5, 6, 7)] == [
        f"{i} of 3\n" for i in (5, 6, 7)
    ]
    with pytest.raises(ClusterError, match="3 records"):
        slurm.job(job)


def test_a_dependent_job_runs_after_success_only(slurm: Cluster, tmp_path: Path) -> None:
    first = slurm.submit("--wrap", f"sleep 1; touch {tmp_path}/first")
    after = slurm.submit(f"--dependency=afterok:{first}", "--wrap", f"test -e {tmp_path}/first")
    failed = slurm.submit("--wrap", "false")
    never = slurm.submit(f"--dependency=afterok:{failed}", "--wrap", f"touch {tmp_path}/never")
    assert slurm.wait(after) == "COMPLETED"
    assert slurm.wait(failed) == "FAILED"
    deadline = time.monotonic() + 20
    while (reason := slurm.job(never)["Reason"]) != "DependencyNeverSatisfied":
        assert time.monotonic() < deadline, reason
        time.sleep(0.1)
    slurm.run(["scancel", never], check=True)
    assert slurm.wait(never) == "CANCELLED"
    assert not (tmp_path / "never").exists()


def test_the_signal_before_the_time_limit_reaches_python(slurm: Cluster, tmp_path: Path) -> None:
    (tmp_path / "catcher.py").write_text(CATCHER)
    log = tmp_path / "log"
    # 59 s before a limit of one minute: as soon as SLURM looks at the clock.
    job = slurm.submit(
        *("-N2", "--time=1", "--signal=USR2@59", "-o", str(log), "--wrap"),
        f"exec srun {sys.executable} -u {tmp_path}/catcher.py",
    )
    assert slurm.wait(job, timeout_s=90) == "COMPLETED"
    assert sorted(log.read_text().split()) == ["0", "1", "caught", "caught", "ready", "ready"]


def test_a_higher_partition_preempts_with_the_signal_first(slurm: Cluster, tmp_path: Path) -> None:
    (tmp_path / "catcher.py").write_text(CATCHER)
    log = tmp_path / "log"
    low = slurm.submit(
        *("-N4", "--exclusive", "--requeue", "--open-mode=append", "--signal=USR2@10"),
        *("-o", str(log), "--wrap", f"exec srun {sys.executable} -u {tmp_path}/catcher.py"),
    )
    wait_for(log, text="ready", count=4)
    high = slurm.submit("-p", "urgent", "-N4", "--exclusive", "--wrap", "true")
    wait_for(log, text="caught", count=4)
    assert slurm.wait(high) == "COMPLETED"
    slurm.run(["scancel", low], check=True)
    slurm.wait(low)


def test_scontrol_requeue_restarts_a_job(slurm: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = (
        'echo "restart ${SLURM_RESTART_COUNT:-0}"; test "${SLURM_RESTART_COUNT:-0}" = 1 || sleep 60'
    )
    job = slurm.submit("--requeue", "--open-mode=append", "-o", str(log), "--wrap", script)
    wait_for(log, text="restart 0")
    time.sleep(1.0 - time.time() % 1.0)  # the whole second in which SLURM would refuse a restart
    slurm.run(["scontrol", "requeue", job], check=True)
    slurm.start_now(job)
    assert slurm.wait(job) == "COMPLETED"
    assert log.read_text().count("restart 1") == 1
    assert slurm.job(job)["Restarts"] == "1"


def test_a_failed_node_requeues_its_job_and_comes_back(slurm: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = slurm.submit(
        *("-N2", "-w", "n2,n3", "--requeue", "--open-mode=append", "-o", str(log)),
        *("--wrap", "srun bash -c 'echo on $SLURMD_NODENAME; sleep 90'"),
    )
    wait_for(log, text="on n", count=2)
    slurm.kill_node("n3")
    try:
        slurm.wait_state(job, state="PENDING", timeout_s=90)
        assert slurm.job(job)["Restarts"] == "1"
        assert "n3" not in slurm.nodes_idle()
    finally:
        slurm.start_node("n3")
        slurm.run(["scancel", job])
    assert slurm.wait(job) == "CANCELLED"
    slurm.wait_idle()


def test_mpi_ranks_of_a_step_find_each_other(slurm: Cluster) -> None:
    if not Path(sys.prefix, "lib", "libmpi.so.12").exists():
        pytest.skip("the mpich package is not installed")
    program = (
        "import os; from mpi4py.MPI import COMM_WORLD as w;"
        "os.write(1, b'%d %d %d\\n' % (w.rank, w.size, w.allreduce(w.rank)))"
    )
    done = slurm.run(
        ["srun", "-N4", "--mpi=pmi2", sys.executable, "-c", program],
        environ={"MPI4PY_MPIABI": "mpich", "LD_LIBRARY_PATH": f"{sys.prefix}/lib"},
        check=True,
    )
    assert sorted(done.stdout.splitlines()) == [f"{rank} 4 6" for rank in range(4)]


def test_fields_with_blanks_and_equal_signs(slurm: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "a b.sh"
    script.write_text("#!/bin/sh\n")
    job = slurm.submit("--comment=a b=c", str(script), "train.steps=3", "x=y z")
    assert slurm.job(job)["Command"] == f"{script} train.steps=3 x=y z"
    assert slurm.job(job)["Comment"] == "a b=c"
    assert slurm.wait(job) == "COMPLETED"


def test_commands_that_fail_and_jobs_that_do_not_end_are_reported(slurm: Cluster) -> None:
    with pytest.raises(ClusterError, match="exit code 1"):
        slurm.run(["sbatch", "--partition=absent", "--wrap", "true"], check=True)
    job = slurm.submit("--hold", "--wrap", "true")
    with pytest.raises(TimeoutError, match=r"PENDING.*JobHeldUser"):
        slurm.wait(job, timeout_s=0.2)
    with pytest.raises(TimeoutError, match="is PENDING, not RUNNING"):
        slurm.wait_state(job, state="RUNNING", timeout_s=0.2)
    slurm.run(["scancel", job], check=True)


def test_a_second_cluster_lives_beside_the_first_and_leaves_nothing(slurm: Cluster) -> None:
    before = set(descendants(os.getpid()))
    with Cluster() as second:
        assert os.environ["SLURM_CONF"] == str(second.conf)
        job = second.submit("-N2", "--wrap", "srun sleep 100")
        second.wait_state(job, state="RUNNING")
        assert len(set(descendants(os.getpid())) - before) >= 7
    assert set(descendants(os.getpid())) <= before
    assert not second.folder.exists()
    assert os.environ["SLURM_CONF"] == str(slurm.conf)
    assert slurm.nodes_idle() == list(NODES)


def test_a_cluster_that_cannot_start_says_why_and_leaves_nothing(
    slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(descendants(os.getpid()))
    monkeypatch.setattr("tests.slurm.cluster.NODE_LINE", "NodeName={name} NoSuchKey={port}")
    broken = Cluster()
    with pytest.raises(ClusterError, match=r"did not start: .* ended(?s:.)*NoSuchKey"), broken:
        pass
    assert set(descendants(os.getpid())) <= before
    assert not broken.folder.exists()


def test_a_task_of_an_array_is_requeued_alone(slurm: Cluster, tmp_path: Path) -> None:
    """The last one has the number of the array as its job's; the others go on."""
    ask = (
        "import os, subprocess; from toolkit.cluster.preempt import requeue_command;"
        "subprocess.run(requeue_command(os.environ), check=True)"
    )
    script = tmp_path / "script.sh"
    script.write_text(
        "#!/bin/bash\n"
        f"echo start >> {tmp_path}/$SLURM_ARRAY_TASK_ID\n"
        'if [ "$SLURM_JOB_ID" = "$SLURM_ARRAY_JOB_ID" ] && [ -z "$SLURM_RESTART_COUNT" ]; then\n'
        f'  {sys.executable} -c "{ask}"\n  sleep 60\nfi\n'
        f"while [ ! -e {tmp_path}/go ]; do sleep 0.2; done\n"
    )
    job = slurm.submit(
        *("--array=0-2", "--requeue", "-o", str(tmp_path / "log%a"), str(script)),
        environ={"PYTHONPATH": str(REPOSITORY)},
    )
    deadline = time.monotonic() + 60
    while not any(one["Restarts"] == "1" for one in slurm.jobs(job)):
        assert time.monotonic() < deadline, slurm.jobs(job)
        time.sleep(0.2)
    restarts = {one["ArrayTaskId"]: one["Restarts"] for one in slurm.jobs(job)}
    assert sorted(restarts.values()) == ["0", "0", "1"]
    (task,) = (name for name, count in restarts.items() if count == "1")
    slurm.start_now(f"{job}_{task}")
    (tmp_path / "go").touch()
    assert slurm.wait(job) == "COMPLETED"
    starts = [(tmp_path / str(number)).read_text().count("start") for number in range(3)]
    assert sorted(starts) == [1, 1, 2]

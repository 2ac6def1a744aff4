"""The life of a job on the real cluster: signals, preemption, a lost node, scancel, chains.

Whatever happens, the final weights equal those of the run that nothing happened to.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.forking.start import forked_python
from tests.light import FEW_ADAPTERS
from tests.slurm.cluster import Cluster, ClusterError
from tests.slurm.test_jobs import ENVIRON, ONE_RANK_A_NODE, REPOSITORY, logs, wait_until
from toolkit.base.files import read_json_lines
from toolkit.runs.records import read_metrics
from toolkit.training.checkpoint import load_newest
from toolkit.training.starts import STARTS_FILE
from toolkit.training.steps import newest_step

pytestmark = pytest.mark.usefixtures("idle")

Door = Callable[..., str]
STEPS = 30
INTERVAL = 10
# A first life must last until SLURM looks at its limits, every 30 s, or whatever else ends it.
LONG_FIRST_LIFE = """
import os, time
from toolkit.training.loop import Trainer

do_step = Trainer.do_step

def long_step(*arguments, **rest):
    time.sleep(1.2)
    return do_step(*arguments, **rest)

if "SLURM_RESTART_COUNT" not in os.environ:
    Trainer.do_step = long_step
"""


@pytest.fixture(scope="module")
def overrides(shards: Path, tiny_model: Path) -> list[str]:
    given = [f"data.train={shards}", f"model.base={tiny_model}", f"train.steps={STEPS}"]
    return [*given, "train.horizon_steps=1000", FEW_ADAPTERS]


@pytest.fixture(scope="module")
def whole(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happens to, on two ranks of this machine."""
    from tests.conftest import run, torchrun

    run_dir = tmp_path_factory.mktemp("whole") / "run"
    command = [*torchrun(2), "-m", "toolkit.train", "tiny_mntp", *overrides]
    run([*command, f"run_dir={run_dir}"])
    return run_dir


def submit(slurm: Cluster, run_dir: Path, *arguments: str, flags: tuple[str, ...] = ()) -> str:
    """The shipped script on two nodes, one rank each; its first life takes its time."""
    folder = run_dir.parent / "customized"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(LONG_FIRST_LIFE)
    return slurm.submit(
        *("--nodes=2", *ONE_RANK_A_NODE, f"--output={run_dir.parent}/log", *flags),
        *("slurm/mntp_mistral.sh", f"run_dir={run_dir}", *arguments),
        environ=ENVIRON | {"RECIPE": "tiny_mntp", "PYTHONPATH": str(folder)},
        cwd=REPOSITORY,
    )


def has_done(run_dir: Path, steps: int) -> Callable[[], bool]:
    return lambda: bool(rows := read_metrics(run_dir)) and rows[-1]["step"] >= steps


def steps_lost(run_dir: Path, *, done: int) -> int:
    """Steps that a second life did again of the `done` of the first."""
    return done - int(read_json_lines(run_dir / STARTS_FILE)[1]["step"])


def assert_equal(run_dir: Path, whole: Path, *, folder: Path) -> None:
    """The same steps with the same losses, and the same weights and moments, bit for bit."""
    assert [row["step"] for row in read_metrics(run_dir)] == list(range(1, STEPS + 1)), logs(folder)
    losses = [[row["loss"] for row in read_metrics(one)] for one in (run_dir, whole)]
    assert losses[0] == losses[1]
    found, wanted = load_newest(run_dir), load_newest(whole)
    assert found and wanted and found.step == wanted.step == STEPS
    for left, right in (
        (found.weights, wanted.weights),
        *((found.moments[name], wanted.moments[name]) for name in wanted.moments),
    ):
        assert all(torch.equal(left[name], right[name]) for name in right)
    assert not list(run_dir.rglob("*.tmp"))


def is_over(slurm: Cluster, job: str) -> bool:
    return slurm.job(job)["JobState"] in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")


def is_requeued(slurm: Cluster, job: str) -> bool:
    """Wait for the end of a life of a job; whether another one follows."""
    wait_until(
        lambda: is_over(slurm, job) or slurm.job(job)["JobState"] == "PENDING", what="end of a life"
    )
    return not is_over(slurm, job)


def test_the_time_limit_and_a_storm_of_signals(
    slurm: Cluster, overrides: list[str], whole: Path, tmp_path: Path
) -> None:
    """SLURM signals before the limit, perhaps while ranks load (they do a step then); more signals
    come while the run saves: they change nothing."""
    log, flags = tmp_path / "log", ("--time=1", "--signal=USR2@55")
    for attempt in range(4):
        run_dir = tmp_path / f"run{attempt}"
        log.unlink(missing_ok=True)
        job = submit(slurm, run_dir, *overrides, "train.save_every_steps=1000", flags=flags)
        wait_until(log.exists, what="log")
        while "told to stop" not in log.read_text() and not is_over(slurm, job):
            # It saves. Only one level: a checkpoint's folder is renamed while this looks.
            if newest_step(run_dir) or list((run_dir / "checkpoints").glob("*.tmp")):
                slurm.run(["scancel", "--signal=USR2", job])
            time.sleep(0.02)
        if is_requeued(slurm, job):
            break
        # SLURM looks at limits every 30 s: this run was over before, or told so in its last step.
    # Before the second life begins, which SLURM would signal after five seconds.
    slurm.run(["scontrol", "update", f"jobid={job}", "timelimit=10"], check=True)
    done = newest_step(run_dir)
    first_life = read_metrics(run_dir)
    slurm.start_now(job)
    assert 0 < done == first_life[-1]["step"] < STEPS
    assert slurm.wait(job, timeout_s=180) == "COMPLETED", logs(tmp_path)
    assert slurm.job(job)["Restarts"] == "1"
    assert steps_lost(run_dir, done=int(first_life[-1]["step"])) == 0
    assert_equal(run_dir, whole, folder=tmp_path)


@pytest.mark.slow
def test_a_preempted_job_comes_back(
    slurm: Cluster, overrides: list[str], whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    job = submit(slurm, run_dir, *overrides, "train.save_every_steps=1000")
    wait_until(has_done(run_dir, 2), what="second step")
    urgent = slurm.submit("-p", "urgent", "-N4", "--exclusive", "--wrap", "sleep 3")
    assert slurm.wait(urgent, timeout_s=120) == "COMPLETED"
    slurm.start_now(job)
    done = read_metrics(run_dir)[-1]["step"]
    assert slurm.wait(job, timeout_s=180) == "COMPLETED", logs(tmp_path)
    assert steps_lost(run_dir, done=int(done)) == 0
    assert_equal(run_dir, whole, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1])
def test_a_lost_node_costs_one_interval(
    place: int, slurm: Cluster, overrides: list[str], whole: Path, tmp_path: Path
) -> None:
    """The first node runs the script and rank 0; the second a rank whose loss the other notices.
    The job goes on elsewhere while the node is down.

    Without GPUs: SLURM 22.05 forgets those of a job that was requeued before it has set a lost node
    down ("gres/gpu: ... node offset invalid" in its log), and refuses the steps of the next start.
    """
    run_dir, flags = tmp_path / "run", ("--gpus-per-node=0",)
    job = submit(slurm, run_dir, *overrides, f"train.save_every_steps={INTERVAL}", flags=flags)
    wait_until(has_done(run_dir, INTERVAL + 2), what="step after a checkpoint")
    nodes = slurm.run(["scontrol", "show", "hostnames", slurm.job(job)["NodeList"]]).stdout
    node = nodes.split()[place]
    slurm.kill_node(node)
    done = read_metrics(run_dir)[-1]["step"]
    try:
        ended = slurm.wait(job, timeout_s=300)
        facts = {k: slurm.job(job)[k] for k in ("Reason", "Restarts", "ExitCode", "NodeList")}
    finally:
        slurm.start_node(node)
    assert ended == "COMPLETED", f"{ended} {facts}\n{logs(tmp_path)}\n{slurm.log_tail()}"
    assert facts["Restarts"] == "1"
    assert 0 < steps_lost(run_dir, done=int(done)) <= INTERVAL + 2  # what it did while we looked
    print(f"{node} was lost: {steps_lost(run_dir, done=int(done))} steps done again")
    if place == 1:  # the watchdog is sooner than SLURM
        told = (tmp_path / "log").read_text()
        assert f"watchdog: rank 1 on host {node} is gone at step " in told
        assert f"; running scontrol requeue {job}" in told
        assert slurm.job(job)["ExcNodeList"] == node
        assert read_json_lines(run_dir / STARTS_FILE)[1]["excluded"] == node
    assert_equal(run_dir, whole, folder=tmp_path)


@pytest.mark.slow
def test_a_cancelled_job_is_submitted_again(
    slurm: Cluster, overrides: list[str], whole: Path, tmp_path: Path
) -> None:
    """scancel sends TERM: it saves and goes, and does not come back by itself."""
    run_dir = tmp_path / "run"
    arguments = (*overrides, "train.save_every_steps=1000")
    job = submit(slurm, run_dir, *arguments)
    wait_until(has_done(run_dir, 2), what="second step")
    slurm.run(["scancel", job], check=True)
    assert slurm.wait(job, timeout_s=60) == "CANCELLED"
    slurm.wait_idle()
    done = read_metrics(run_dir)[-1]["step"]
    again = submit(slurm, run_dir, *arguments)
    assert slurm.wait(again, timeout_s=180) == "COMPLETED", logs(tmp_path)
    assert slurm.job(job)["JobState"] == "CANCELLED"
    assert steps_lost(run_dir, done=int(done)) == 0
    assert_equal(run_dir, whole, folder=tmp_path)


@pytest.mark.slow
def test_a_chain_goes_on_where_requeueing_is_forbidden(
    slurm: Cluster, overrides: list[str], whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    command = [forked_python(), "-m", "toolkit.launch", "--recipe", "tiny_mntp", "--nodes", "2"]
    command += ["--chain", "3", "--cpus-per-task", "1", "--time-min", "10"]
    command += [f"run_dir={run_dir}", *overrides, "train.save_every_steps=1000"]
    printed = slurm.run(command, environ=ENVIRON, cwd=REPOSITORY, check=True).stdout
    first, second, third = re.findall(r"^mntp: job (\d+) ", printed, flags=re.MULTILINE)
    slurm.wait_state(first, state="RUNNING")
    with pytest.raises(ClusterError, match="disabled"):
        slurm.run(["scontrol", "requeue", first], check=True)
    wait_until(has_done(run_dir, 2), what="second step")
    slurm.run(["scancel", "--signal=USR2", first], check=True)
    assert slurm.wait(first, timeout_s=60) == "FAILED"  # exit code 75: not finished
    done = read_metrics(run_dir)[-1]["step"]
    for job in (second, third):
        folder = run_dir / "logs" / "mntp"
        assert slurm.wait(job, timeout_s=180) == "COMPLETED", logs(folder)
    assert steps_lost(run_dir, done=int(done)) == 0
    assert_equal(run_dir, whole, folder=run_dir / "logs" / "mntp")

"""Every option of the launcher as the real SLURM shows it, and what toolkit.status says of jobs."""

import contextlib
import getpass
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.forking.start import forked_python
from tests.slurm.cluster import Cluster
from tests.slurm.test_jobs import ENVIRON, REPOSITORY, job_ids, launch, pipeline, wait_until
from toolkit.base.files import read_json_lines

pytestmark = pytest.mark.usefixtures("idle")


@contextlib.contextmanager
def reserved(slurm: Cluster, *, nodes: str) -> Iterator[str]:
    """A reservation of nodes for this user; all jobs of the user go with it."""
    create = ["scontrol", "create", "reservation", "ReservationName=ours", "StartTime=now"]
    slurm.run([*create, "Duration=60", f"Nodes={nodes}", f"Users={getpass.getuser()}"], check=True)
    yield "ours"
    slurm.run(["scancel", f"--user={getpass.getuser()}"])  # it cannot go while a job wants it
    slurm.run(["scontrol", "delete", "ReservationName=ours"], check=True)


@pytest.fixture
def reservation(slurm: Cluster) -> Iterator[str]:
    with reserved(slurm, nodes="n4") as name:
        yield name


def standing(
    slurm: Cluster, run_dir: Path, *, environ: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """What toolkit.status says of each stage."""
    command = [forked_python(), "-m", "toolkit.status", str(run_dir), "--json"]
    done = slurm.run(command, cwd=REPOSITORY, environ=environ, check=True)
    return {one["stage"]: one for one in json.loads(done.stdout)}


def test_scontrol_shows_every_option(
    slurm: Cluster, shards: Path, tmp_path: Path, reservation: str
) -> None:
    holder = slurm.submit("--hold", "--wrap", "true")
    comment = "the second try, with (64); $5 é"
    site = tmp_path / "site.yaml"
    site.write_text("account: team7\nmail_user: a.b+c@example.org\n")
    arguments = pipeline(tmp_path / "run", shards=shards, num_nodes=2)
    arguments += ["--partition", "urgent", "--qos", "long", "--constraint", "fast&(n1|n2|n3)"]
    arguments += ["--exclude", "n[3-4]", "--mail-type", "END,FAIL", "--comment", comment]
    arguments += ["--dependency", f"afterok:{holder}", "--array-throttle", "1", "--mem-gib", "3"]
    jobs = job_ids(launch(slurm, *arguments, environ={"TOOLKIT_SITE": str(site)}).stdout)
    seen = slurm.job(jobs["mntp"])
    wanted = {
        "Partition": "urgent",
        "Account": "team7",
        "Features": "fast&(n1|n2|n3)",
        "ExcNodeList": "n[3-4]",
        "MailUser": "a.b+c@example.org",
        "MailType": "END,FAIL",
        "Dependency": f"afterok:{holder}(unfulfilled)",
        "TimeLimit": "00:10:00",
        "NumNodes": "2-2",
        "CPUs/Task": "1",
        "MinMemoryNode": "3G",
        "TresPerNode": "gres:gpu:1",
        "Requeue": "1",
        "JobName": "run-mntp",
        "JobState": "PENDING",
    }
    assert {key: seen.get(key) for key in wanted} == wanted
    # Without accounting SLURM knows no QoS, and shows none; it is asked for all the same.
    script = tmp_path / "run" / "logs" / "mntp" / f"{jobs['mntp']}_submission.sh"
    assert "#SBATCH --qos=long\n" in script.read_text()
    shown = slurm.run(["scontrol", "show", "job", "-o", jobs["mntp"]], check=True).stdout
    assert f"Comment={comment} " in shown
    array = slurm.jobs(jobs["embed"])[0]
    assert array["ArrayTaskThrottle"] == "1"
    assert array["MinMemoryNode"] == "3G"  # one rank a node here: its part is the whole
    arguments = ["--recipe", "tiny_mntp", f"data.train={shards}", f"run_dir={tmp_path / 'second'}"]
    arguments += ["--reservation", reservation, "--dependency", f"afterok:{holder}"]
    (job,) = job_ids(launch(slurm, *arguments, "--gpus-per-node", "1").stdout).values()
    assert slurm.job(job)["Reservation"] == reservation


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--partition", "absent"], "partition 'absent': has no nodes, says sinfo"),
        (["--partition", "absent", "--gpus-per-node", "1"], "invalid partition specified: absent"),
        (["--reservation", "absent"], "Requested reservation is invalid"),
        (["--constraint", "absent"], "Invalid feature specification"),
    ],
)
def test_what_sbatch_refuses_is_told_in_its_words(
    flags: list[str], message: str, slurm: Cluster, shards: Path, tmp_path: Path
) -> None:
    arguments = ["--recipe", "tiny_mntp", f"data.train={shards}", f"run_dir={tmp_path / 'run'}"]
    done = launch(slurm, *arguments, *flags, code=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_stage_that_fails_stops_those_behind_it_and_status_says_why(
    slurm: Cluster, shards: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    arguments = [*pipeline(run_dir, shards=shards, num_nodes=2), "train.steps=2"]
    arguments += ["--exclude", "n[3-4]"]
    jobs = job_ids(launch(slurm, *arguments).stdout)
    before = standing(slurm, run_dir)
    assert before["simcse"]["state"] == before["embed"]["state"] == "PENDING"
    assert before["simcse"]["reason"] == "waits for the job before it"
    assert before["embed"]["jobs"] == [jobs["embed"]]
    wait_until(lambda: (run_dir / "mntp" / "config.yaml").is_file(), what="start of training")
    # What the next stage reads is gone before it begins.
    assert slurm.wait(jobs["mntp"], timeout_s=120) == "COMPLETED"
    (start,) = read_json_lines(run_dir / "mntp" / "starts.jsonl")
    assert start["excluded"] == "n[3-4]"
    (run_dir / "mntp" / "encoder" / "config.json").unlink()
    assert slurm.wait(jobs["simcse"], timeout_s=120) == "FAILED"
    slurm.wait(jobs["embed"], timeout_s=30)
    after = standing(slurm, run_dir)
    assert (after["mntp"]["state"], after["mntp"]["done"]) == ("done", 2)
    assert after["simcse"]["state"] == "FAILED"
    assert "error: " in after["simcse"]["trouble"]
    assert after["embed"]["state"] == "CANCELLED"
    assert after["embed"]["reason"] == "the job before it failed"
    command = [forked_python(), "-m", "toolkit.status", str(run_dir)]
    shown = subprocess.run(
        command, env={**slurm.environ, **ENVIRON}, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert "the job before it failed" in shown.stdout
    print(shown.stdout)

"""What only a SLURM with accounting has: accounts and QoS, and a memory of ended jobs."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.slurm.accounting import ACCOUNT, PROGRAMS, QOS, AccountingCluster
from tests.slurm.cluster import SEARCH_PATH, Cluster, missing_programs
from tests.slurm.test_jobs import job_ids, launch, pipeline, wait_until
from tests.slurm.test_options import reserved, standing
from toolkit.cluster.queue import job_states


@pytest.fixture
def reservation(accounting: AccountingCluster) -> Iterator[str]:
    with reserved(accounting, nodes="n[2-3]") as name:
        yield name


@pytest.fixture(scope="module")
def accounting() -> Iterator[AccountingCluster]:
    missing = missing_programs()
    missing += [name for name in PROGRAMS if shutil.which(name, path=SEARCH_PATH) is None]
    need(not missing, f"not installed: {', '.join(missing)} (Debian: slurmdbd mariadb-server)")
    need(os.geteuid() == 0, "MariaDB runs as whoever starts it, here only as root")
    with AccountingCluster() as cluster:
        yield cluster


def of_stages(slurm: Cluster, run_dir: Path) -> dict[str, tuple[str, str]]:
    return {name: (one["state"], one["reason"]) for name, one in standing(slurm, run_dir).items()}


def test_account_and_qos_are_those_that_were_asked_for(
    accounting: AccountingCluster, reservation: str, shards: Path, tmp_path: Path
) -> None:
    holder = accounting.submit("--hold", "--account", ACCOUNT, "--wrap", "true")
    arguments = [*pipeline(tmp_path / "run", shards=shards, num_nodes=2)]
    arguments += ["--account", ACCOUNT, "--qos", QOS, "--partition", "urgent", "--comment", "a (b)"]
    arguments += ["--dependency", f"afterok:{holder}", "--array-throttle", "1", "--chain", "2"]
    arguments += ["--mem-gib", "3", "--mail-user", "a@example.org", "--mail-type", "END,FAIL"]
    arguments += ["--constraint", "fast", "--exclude", "n4", "--reservation", reservation]
    printed = launch(accounting, *arguments).stdout
    jobs = job_ids(printed)  # of a chain the last
    assert printed.count("mntp: job ") == printed.count("simcse: job ") == 2
    first = accounting.job(int(holder) + 1)
    wanted = {
        "Account": ACCOUNT,
        "QOS": QOS,
        "Partition": "urgent",
        "Reservation": reservation,
        "Comment": "a (b)",
        "Features": "fast",
        "ExcNodeList": "n4",
        "Dependency": f"afterok:{holder}(unfulfilled)",
        "MailUser": "a@example.org",
        "MailType": "END,FAIL",
        "TimeLimit": "00:10:00",
        "NumNodes": "2-2",
        "CPUs/Task": "1",
        "MinMemoryNode": "3G",
        "TresPerNode": "gres:gpu:1",
        "Requeue": "0",
        "JobState": "PENDING",
    }
    assert {key: first.get(key) for key in wanted} == wanted
    second = accounting.job(jobs["mntp"])
    assert second["Dependency"] == f"afterany:{int(holder) + 1}(unfulfilled)"
    (array,) = accounting.jobs(jobs["embed"])
    assert (array["Account"], array["QOS"], array["ArrayTaskThrottle"]) == (ACCOUNT, QOS, "1")
    asked = accounting.run(["squeue", "-h", "-o", "%i %a %q"], check=True).stdout.splitlines()
    assert len(asked) == 6 and all(line.split()[1] == ACCOUNT for line in asked), asked
    # What the first job waits for will never come: all that wait for one another go.
    accounting.run(["scancel", holder], check=True)
    assert accounting.wait(int(holder) + 1) == "CANCELLED"
    accounting.run(["scancel", "--account", ACCOUNT], check=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--account", "absent"], "Invalid account or account/partition combination"),
        (["--qos", "absent"], "Invalid qos specification"),
    ],
)
def test_an_account_that_is_not_yours_is_refused_in_sbatchs_words(
    flags: list[str], message: str, accounting: AccountingCluster, shards: Path, tmp_path: Path
) -> None:
    arguments = ["--recipe", "tiny_mntp", f"data.train={shards}", f"run_dir={tmp_path / 'run'}"]
    done = launch(accounting, *arguments, *flags, code=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_became_of_jobs_is_known_when_slurm_has_forgotten_them(
    accounting: AccountingCluster, shards: Path, tmp_path: Path
) -> None:
    """A stage fails and those behind it go; state, exit code and reason stand in accounting."""
    accounting.wait_idle()
    damaged, run_dir = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(shards, damaged)
    jobs = job_ids(launch(accounting, *pipeline(run_dir, shards=damaged, num_nodes=1)).stdout)
    # Found by the job: the launcher has looked at names only.
    next(damaged.glob("*.parquet")).write_bytes(b"no table")
    assert accounting.wait(jobs["mntp"], timeout_s=90) == "FAILED"
    for stage in ("simcse", "embed"):
        assert accounting.wait(jobs[stage], timeout_s=30) == "CANCELLED"
    remembered = of_stages(accounting, run_dir)
    assert remembered["mntp"] == ("FAILED", "exit code 2")
    assert remembered["simcse"] == remembered["embed"] == ("CANCELLED", "the job before it failed")
    accounting.forget_ended_jobs(list(jobs.values()))
    assert of_stages(accounting, run_dir) == remembered
    found = standing(accounting, run_dir)["mntp"]
    assert found["nodes"] and "error: " in found["trouble"]
    # Without sacct on PATH, as on sites without accounting, nobody knows them any more.
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("scontrol", "squeue"):
        (bare / name).symlink_to(shutil.which(name, path=SEARCH_PATH) or name)
    unknown = standing(accounting, run_dir, environ={"PATH": str(bare)})
    told = [(one["state"], one["reason"]) for one in unknown.values()]
    assert told == [("UNKNOWN", "SLURM does not know it any more")] * 3
    assert unknown["mntp"]["trouble"] == found["trouble"]


def test_a_job_that_lost_its_turn_at_once_is_told_from_one_that_a_person_cancelled(
    accounting: AccountingCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For seconds accounting has no reason of a job whose predecessor ends at once; nor has it
    ever one of a job that a person cancels."""
    first, waits = (accounting.submit("--hold", "--wrap", "true") for _ in range(2))
    behind = ["--dependency", f"afterok:{first}", "--kill-on-invalid-dep", "yes"]
    lost = accounting.submit(*behind, "--wrap", "true")
    accounting.run(["scancel", first, waits], check=True)
    for name, value in accounting.environ.items():
        monkeypatch.setenv(name, value)
    # Only accounting can be asked.
    (tmp_path / "sacct").symlink_to(shutil.which("sacct", path=SEARCH_PATH) or "sacct")
    monkeypatch.setenv("PATH", str(tmp_path))
    wait_until(
        lambda: all(one.state == "CANCELLED" for one in job_states([first, lost, waits])),
        what="accounting to know all three",
    )
    told = [one.reason for one in job_states([first, lost, waits])]
    assert told == ["", "the job before it failed", ""]

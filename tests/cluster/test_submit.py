"""Jobs on this machine: what is said of one that fails."""

from pathlib import Path

import pytest

from tests.cluster.ended import failed, killed, wrong
from toolkit.base.errors import BadInput
from toolkit.cluster.submit import JobFailed, Resources, run_here


def resources() -> Resources:
    return Resources(
        name="run-train",
        nodes=1,
        tasks_per_node=1,
        gpus_per_node=0,
        cpus_per_task=1,
        time_min=5,
        mem_gib=None,
        mem_per_gpu_gib=None,
        options={},
    )


def test_a_job_that_was_killed_says_so(tmp_path: Path) -> None:
    shown: list[str] = []
    with pytest.raises(JobFailed, match="run-train failed: its process ended without a result"):
        run_here(resources(), job=killed, folder=tmp_path / "logs", show=shown.append)
    assert shown == ["step 3 of 20"]


def test_bad_input_of_a_job_is_that_of_its_launcher(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="steps=0: at least 1"):
        run_here(resources(), job=wrong, folder=tmp_path / "logs", show=print)


def test_a_job_that_fails_is_told_by_its_error(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="none of 30 questions is left"):
        run_here(resources(), job=failed, folder=tmp_path / "logs", show=print)

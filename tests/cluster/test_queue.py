"""What is made of SLURM's records; a real SLURM tells the rest (tests/slurm)."""

from pathlib import Path

import pytest

from toolkit.cluster.queue import job_state

RECORD = "JobId={job} ArrayJobId=9 ArrayTaskId={tasks} JobState={state} Reason=None NodeList=(null)"


@pytest.mark.parametrize(
    ("records", "state"),
    [
        ([("4-31%4", "PENDING"), ("3", "RUNNING"), ("2", "RUNNING")], "PENDING 28, RUNNING 2"),
        ([("1,3-5", "PENDING"), ("0", "COMPLETED")], "PENDING 4, COMPLETED 1"),
        ([("0-8:2,11%3", "PENDING"), ("9", "FAILED")], "PENDING 6, FAILED 1"),
        ([("7", "RUNNING")], "RUNNING"),
    ],
)
def test_tasks_that_have_not_begun_share_a_record(
    records: list[tuple[str, str]], state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        RECORD.format(job=number, tasks=tasks, state=one)
        for number, (tasks, one) in enumerate(records)
    ]
    answer = "\n".join(lines)
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert job_state("9").state == state

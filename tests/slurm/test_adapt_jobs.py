"""The pipeline of a domain as SLURM jobs: what they write is what one machine writes."""

import sys
from pathlib import Path

import pytest

from tests.conftest import run
from tests.domain.adapting import SETTINGS, command, differing, write_papers
from tests.forking.start import forked_python
from tests.slurm.cluster import Cluster
from tests.slurm.test_jobs import ENVIRON, REPOSITORY, job_ids, logs, wait_until

# Two ranks train, and two workers share each stage of an array: on two nodes, or on this machine.
THERE = ("--cluster", "slurm", "--nodes", "2", "--gpus-per-node", "0", "--cpus-per-task", "1")
HERE = ("--cluster", "local", "--gpus-per-node", "2")
# Small units, so that some are left when the first is there.
GIVEN = (*SETTINGS, "questions.corpus.unit_documents=2")


@pytest.mark.slow
@pytest.mark.usefixtures("idle")
def test_a_pipeline_whose_job_is_killed_equals_the_one_on_one_machine(
    slurm: Cluster, tmp_path: Path
) -> None:
    """The jobs after the killed one are cancelled; the same command goes on."""
    folders = tmp_path / "there", tmp_path / "here"
    for folder in folders:
        folder.mkdir()
    there, here = (folder / "run" for folder in folders)
    papers = tmp_path / "papers"
    papers.mkdir()
    write_papers(papers)

    def launch() -> dict[str, str]:
        """Job of each stage."""
        line = [forked_python(), *command(papers, *GIVEN, "--time-min", "10", where=THERE)]
        environ = ENVIRON | {"PYTHONPATH": str(REPOSITORY)}
        done = slurm.run(line, environ=environ, cwd=folders[0], timeout_s=300)
        assert done.returncode == 0, done.stderr
        return job_ids(done.stdout)

    jobs = launch()
    units, workers = there / "questions" / "units", there / "logs" / "questions"
    wait_until(
        lambda: any(units.glob("*.json")) and len([*workers.glob("*_log.out")]) == 2,
        what="unit of two workers",
        timeout_s=300,
    )
    slurm.run(["scancel", "--signal=KILL", jobs["questions"]], check=True)
    for stage in ("questions", "report"):
        assert slurm.wait(jobs[stage], timeout_s=60) == "CANCELLED"
    assert not (there / "questions" / "manifest.json").exists()
    for stage, job in launch().items():
        assert slurm.wait(job, timeout_s=300) == "COMPLETED", logs(there / "logs" / stage)

    run([sys.executable, *command(papers, *GIVEN, where=HERE)], cwd=folders[1])
    assert differing(there, here) == []

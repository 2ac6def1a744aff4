"""Wherever a run lies, sbatch writes its logs there and nowhere else, or the launcher refuses."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.slurm.cluster import Cluster
from toolkit.base.errors import BadInput
from toolkit.cluster import submit

pytestmark = pytest.mark.usefixtures("idle")
HOSTILE = list("%jxu0A\\ '\"$#;&|<>(){}[]*?~!`=,:@^\té\n") + [
    "%%",
    "%j",
    "%4t",
    "$(id)",
    "\\%j",
    "é",
]
RESOURCES = submit.Resources(
    name="paths", nodes=1, tasks_per_node=1, gpus_per_node=0, cpus_per_task=1, time_min=1
)
NAMES = st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=8).map("".join)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(NAMES)
def test_the_log_of_a_job_is_in_its_folder_or_the_folder_is_refused(
    slurm: Cluster, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name
    script = submit.sbatch_text(RESOURCES, folder=folder, after=None, setup=[])
    (tmp_path / "job.sh").write_text(script)
    try:
        submit.check_folder(folder, what="run_dir")
    except BadInput:
        assert re.search(r"[%\\\\\t\n]", name)
        return
    job = slurm.submit("--hold", str(tmp_path / "job.sh"))
    shown = slurm.run(["scontrol", "show", "job", job], check=True).stdout
    slurm.run(["scancel", job])
    (found,) = re.findall(r"^   StdOut=(.*)$", shown, flags=re.MULTILINE)
    assert found == f"{folder}/{job}_0_log.out"


def test_what_is_refused_would_have_gone_astray(slurm: Cluster, tmp_path: Path) -> None:
    for name in ("%j", "\\a"):
        script = submit.sbatch_text(RESOURCES, folder=tmp_path / name, after=None, setup=[])
        (tmp_path / "job.sh").write_text(script)
        job = slurm.submit("--hold", str(tmp_path / "job.sh"))
        assert slurm.job(job)["StdOut"] != f"{tmp_path / name}/{job}_0_log.out"
        with pytest.raises(BadInput, match="a path without %"):
            submit.check_folder(tmp_path / name, what="run_dir")

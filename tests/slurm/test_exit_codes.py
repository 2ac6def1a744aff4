"""The README's table of exit codes, as a real SLURM records them of jobs of two ranks.

srun ends with the highest code of its tasks, and sends TERM to the others when one ends: a rank
that ends otherwise than the first makes 143 or 137 of the code that a person would look up.
"""

import shutil
from pathlib import Path

import pytest

from tests.forking.start import forked_python
from tests.slurm.cluster import Cluster
from tests.slurm.test_jobs import ENVIRON, ONE_RANK_A_NODE, REPOSITORY, job_ids, launch, logs
from tests.two_layers import two_layers
from toolkit import train

pytestmark = pytest.mark.usefixtures("idle")
BROKEN = ("train.max_skipped_steps=0", "train.lr=1e20", "train.warmup_steps=0", "train.steps=3")


@pytest.fixture(scope="module")
def four_steps(shards: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has done four steps."""
    run_dir = tmp_path_factory.mktemp("four") / "run"
    given = [f"data.train={shards}", f"model.base={tiny_model}", f"run_dir={run_dir}"]
    assert train.main(["tiny_mntp", *given, *STEPS]) == 0
    return run_dir


STEPS = ("train.steps=4", "train.horizon_steps=9")


@pytest.fixture(scope="module")
def damaged(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with a flipped bit, which rank 0 alone finds."""
    copy = tmp_path_factory.mktemp("damaged") / "shards"
    shutil.copytree(shards, copy)
    (file,) = copy.glob("*.parquet")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return copy


def ended(
    slurm: Cluster, folder: Path, *arguments: object, recipe: str = "tiny_mntp"
) -> tuple[str, str]:
    """The state and exit code of the shipped script on two nodes, and what it printed."""
    job = slurm.submit(
        *("--nodes=2", *ONE_RANK_A_NODE, f"--output={folder}/log", "slurm/mntp_mistral.sh"),
        *map(str, [f"model.base={two_layers()}", *arguments]),
        environ=ENVIRON | {"RECIPE": recipe},
        cwd=REPOSITORY,
    )
    state = slurm.wait(job, timeout_s=150)
    return f"{state} {slurm.job(job)['ExitCode']}", logs(folder)


def test_what_can_be_refused_is_refused_before_any_rank_starts(
    slurm: Cluster, shards: Path, four_steps: Path, tmp_path: Path
) -> None:
    data = f"data.train={shards}"
    cases = {
        "unknown key 'train.stpes'": ([data, "train.stpes=3"], "tiny_mntp"),
        "unknown recipe 'tiny_mtnp'": ([data], "tiny_mtnp"),
        "has step 4 already": ([data, f"run_dir={four_steps}", "train.steps=2", STEPS[1]], ""),
        "no whole shard directory": ([f"data.train={tmp_path / 'absent'}"], "tiny_mntp"),
        "cannot be dealt to 2 ranks": (
            [data, "train.global_batch_rows=9", "train.fit_ranks=false"],
            "tiny_mntp",
        ),
    }
    for number, (message, (arguments, recipe)) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        code, said = ended(slurm, folder, *arguments, recipe=recipe or "tiny_mntp")
        assert code == "FAILED 2:0", said
        assert message in said
        assert said.count("error: ") == 1, said  # by one process, before srun


def test_what_one_rank_finds_all_ranks_refuse(
    slurm: Cluster, damaged: Path, tmp_path: Path
) -> None:
    code, said = ended(slurm, tmp_path, f"data.train={damaged}", f"run_dir={tmp_path / 'run'}")
    assert code == "FAILED 2:0", said
    assert said.count("is damaged") == 1, said
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_at_a_step_is_code_1(slurm: Cluster, shards: Path, tmp_path: Path) -> None:
    code, said = ended(
        slurm, tmp_path, f"data.train={shards}", f"run_dir={tmp_path / 'run'}", *BROKEN
    )
    assert code == "FAILED 1:0", said
    assert "error: " in said and "NaN or infinite" in said, said


@pytest.mark.parametrize("what", ["refused", "failed"])
def test_jobs_of_the_launcher_have_the_same_codes(
    what: str, slurm: Cluster, damaged: Path, shards: Path, tmp_path: Path
) -> None:
    data = damaged if what == "refused" else shards
    arguments = ["--recipe", "tiny_mntp", "--nodes", 2, "--cpus-per-task", 1, "--time-min", 10]
    arguments += [f"data.train={data}", f"run_dir={tmp_path / 'run'}"]
    arguments += [f"model.base={two_layers()}"]
    arguments += BROKEN if what == "failed" else ()
    (job,) = job_ids(launch(slurm, *arguments).stdout).values()
    state = slurm.wait(job, timeout_s=150)
    said = logs(tmp_path / "run" / "logs" / "mntp")
    assert f"{state} {slurm.job(job)['ExitCode']}" == f"FAILED {2 if what == 'refused' else 1}:0", (
        said
    )
    assert ("error: " in said) and "Traceback" not in said, said


def test_ranks_that_srun_starts_by_hand_end_alike(slurm: Cluster) -> None:
    """No check stands before them: the first to end waits for the others."""
    command = ["srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", forked_python()]
    command += ["-m", "toolkit.train", "tiny_mntp", "train.stpes=3"]
    done = slurm.run(command, cwd=REPOSITORY, timeout_s=120)
    assert done.returncode == 2, done.stderr

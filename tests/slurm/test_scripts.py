"""The sbatch scripts: resources only, and what reaches Python when they are really submitted."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "slurm"
SCRIPTS = sorted(path for path in FOLDER.glob("*.sh") if path.name != "env.sh")
NAMES = [path.stem for path in SCRIPTS]
TRAINING = ["mntp_mistral", "simcse_mistral", "supervised_mistral"]

DIRECTIVES = {
    **{
        name: {
            "nodes": "1",
            "ntasks-per-node": gpus,
            "gpus-per-node": gpus,
            "cpus-per-task": "8",
            "mem-per-gpu": "48G",
            "signal": "USR2@120",
            "requeue": "",
            "open-mode": "append",
            "output": "%x_%j.log",
        }
        # The batch of 32 rows of MNTP keeps four GPUs busy.
        for name, gpus in zip(TRAINING, ("4", "8", "8"), strict=True)
    },
    "embed_corpus": {
        "array": "0-3",
        "nodes": "1",
        "ntasks-per-node": "1",
        "gpus-per-node": "1",
        "cpus-per-task": "8",
        "mem-per-gpu": "32G",
        "signal": "USR2@120",
        "requeue": "",
        "open-mode": "append",
        "output": "%x_%A_%a.log",
    },
    "shard_wikipedia": {
        "nodes": "1",
        "ntasks-per-node": "1",
        "cpus-per-task": "16",
        "mem-per-cpu": "4G",
        "requeue": "",
        "open-mode": "append",
        "output": "%x_%j.log",
    },
}
COMMANDS = {
    **{name: f'python -m toolkit.train "${{RECIPE:-{name}_7b}}" "$@"' for name in TRAINING},
    "embed_corpus": 'python -m toolkit.encode "${RECIPE:-embed_corpus}" "$@"',
    "shard_wikipedia": "python data_scripts/shard_wikipedia.py --workers "
    '"${SLURM_CPUS_PER_TASK:-1}" "$@"',
}
# What looks before the ranks start; sharding has one task, and looks for itself.
CHECKS = {name: f'python -m toolkit.ready "${{RECIPE:-{name}_7b}}" "$@"' for name in TRAINING}
CHECKS["embed_corpus"] = 'python -m toolkit.ready "${RECIPE:-embed_corpus}" "$@"'
SMALL = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--time=5"]

# In the place of python: says what it was given.
STUB = """\
#!/bin/bash
if [[ "$2" == toolkit.ready ]]; then echo "ready ${*:3}"; exit "${READY_CODE:-0}"; fi
echo "task ${SLURM_PROCID} of ${SLURM_NTASKS} cwd=${PWD} omp=${OMP_NUM_THREADS} \
cpus=${SRUN_CPUS_PER_TASK} gpu=${CUDA_VISIBLE_DEVICES:-none} offline=${HF_HUB_OFFLINE} \
array=${SLURM_ARRAY_TASK_ID:-none}/${SLURM_ARRAY_TASK_COUNT:-none} argv=$(printf '<%s>' "$@")"
"""


def directives(script: Path) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script.read_text(), flags=re.MULTILINE)
    assert len(found) == len(dict(found)), "a directive stands twice"
    return dict(found)


def test_every_script_is_known() -> None:
    assert sorted(DIRECTIVES) == NAMES == sorted(COMMANDS)


@pytest.mark.parametrize("script", [*SCRIPTS, FOLDER / "env.sh"], ids=lambda path: path.stem)
def test_the_shell_accepts_it(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(
            ["shellcheck", "--external-sources", str(script)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
    elif os.environ.get("TOOLKIT_REQUIRE_ALL") == "1":
        pytest.fail("shellcheck is not installed")


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_it_holds_resources_only(script: Path) -> None:
    lines = script.read_text().replace("\\\n  ", "").splitlines()
    assert script.read_text().count("\n") <= 30
    assert lines[0] == "#!/bin/bash"
    found = directives(script)
    assert found.pop("job-name") == script.stem.split("_")[0]
    assert re.fullmatch(r"(\d-)?\d\d:00:00", found.pop("time"))
    assert found == DIRECTIVES[script.stem]
    # Nothing but these commands: no variable, no export, no key=value for the recipe.
    code = [line for line in lines if line and not line.startswith("#")]
    assert code == [
        "set -euo pipefail",
        'cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch}"',
        'source "${TOOLKIT_ENV_SH:-slurm/env.sh}"',
        *([CHECKS[script.stem]] if script.stem in CHECKS else []),
        f"exec srun --kill-on-bad-exit=1 {COMMANDS[script.stem]}",
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_it_refuses_to_run_without_sbatch(script: Path) -> None:
    done = subprocess.run(
        ["bash", str(script)],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "submit this file with sbatch" in done.stderr


def sourced(**environ: str) -> dict[str, str]:
    """The environment after slurm/env.sh, from nearly nothing."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "source slurm/env.sh && env -0"],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "12"} | environ,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(pair.split("=", 1) for pair in done.stdout.split("\0") if pair)


def test_env_sh_sets_what_every_task_needs() -> None:
    found = sourced(SLURM_CPUS_PER_TASK="7", OMP_NUM_THREADS="1", TMPDIR="/scratch")
    assert found["OMP_NUM_THREADS"] == "7"
    assert found["SRUN_CPUS_PER_TASK"] == "7"
    assert found["PYTHONUNBUFFERED"] == "1"
    assert found["HF_HUB_OFFLINE"] == "1"
    assert found["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert found["PYTHONPATH"] == str(REPOSITORY)
    cache = f"/scratch/toolkit-{os.getuid()}/12"
    assert found["TORCH_EXTENSIONS_DIR"] == f"{cache}/torch_extensions"
    assert found["TRITON_CACHE_DIR"] == f"{cache}/triton"
    assert not [name for name in found if name.startswith("NCCL")]


def test_env_sh_leaves_what_the_user_decides() -> None:
    found = sourced(HF_HUB_OFFLINE="0", PYTHONPATH="/mine")
    assert found["HF_HUB_OFFLINE"] == "0"
    assert found["PYTHONPATH"] == f"{REPOSITORY}:/mine"
    assert found["OMP_NUM_THREADS"] == "1"
    assert "SRUN_CPUS_PER_TASK" not in found
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):  # the second is its older name
        found = sourced(**{name: "max_split_size_mb:64"})
        assert [found[n] for n in found if n.endswith("ALLOC_CONF")] == ["max_split_size_mb:64"]


def test_env_sh_activates_the_virtual_environment(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/activate").write_text("export ACTIVE=yes\n")
    assert sourced(TOOLKIT_VENV=str(tmp_path))["ACTIVE"] == "yes"
    with pytest.raises(subprocess.CalledProcessError) as error:
        sourced(TOOLKIT_VENV=str(tmp_path / "absent"))
    assert "is not a virtual environment" in error.value.stderr


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """The environment of a submission whose `python` only prints what it was given."""
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    site = tmp_path / "site.sh"
    site.write_text(f'source slurm/env.sh\nexport PATH="{tmp_path}:${{PATH}}"\n')
    return {"TOOLKIT_ENV_SH": str(site)}


def submit(slurm: Cluster, *arguments: str, environ: dict[str, str], log: Path) -> list[str]:
    job = slurm.submit(*arguments, environ=environ, cwd=REPOSITORY)
    assert slurm.wait(job) == "COMPLETED", slurm.jobs(job)
    return sorted(
        line for path in log.parent.glob(log.name) for line in path.read_text().splitlines()
    )


def test_flags_override_the_directives(
    slurm: Cluster, stand_in: dict[str, str], tmp_path: Path
) -> None:
    arguments = [
        *SMALL,
        f"--output={tmp_path}/log",
        "slurm/mntp_mistral.sh",
        "train.steps=3",
        "a=b c",
    ]
    argv = "<-m><toolkit.train><mntp_mistral_7b><train.steps=3><a=b c>"
    assert submit(slurm, *arguments, environ=stand_in, log=tmp_path / "log") == [
        "ready mntp_mistral_7b train.steps=3 a=b c",
        *(
            f"task {task} of 2 cwd={REPOSITORY} omp=1 cpus=1 gpu=0 offline=1 "
            f"array=none/none argv={argv}"
            for task in (0, 1)
        ),
    ]


def test_the_recipe_comes_from_the_environment(
    slurm: Cluster, stand_in: dict[str, str], tmp_path: Path
) -> None:
    arguments = [*SMALL, f"--output={tmp_path}/log", "slurm/simcse_mistral.sh"]
    lines = submit(slurm, *arguments, environ=stand_in | {"RECIPE": "tiny"}, log=tmp_path / "log")
    assert lines[0] == "ready tiny"
    assert [line.partition("argv=")[2] for line in lines[1:]] == ["<-m><toolkit.train><tiny>"] * 2


def test_what_is_not_ready_starts_no_rank(
    slurm: Cluster, stand_in: dict[str, str], tmp_path: Path
) -> None:
    arguments = [*SMALL, f"--output={tmp_path}/log", "slurm/supervised_mistral.sh", "x=1"]
    job = slurm.submit(*arguments, environ=stand_in | {"READY_CODE": "2"}, cwd=REPOSITORY)
    assert (slurm.wait(job), slurm.job(job)["ExitCode"]) == ("FAILED", "2:0")
    assert (tmp_path / "log").read_text() == "ready supervised_mistral_7b x=1\n"


def test_embedding_is_an_array_of_one_gpu_tasks(
    slurm: Cluster, stand_in: dict[str, str], tmp_path: Path
) -> None:
    arguments = ["--cpus-per-task=2", f"--output={tmp_path}/%a.log", "slurm/embed_corpus.sh", "x=1"]
    lines = submit(slurm, *arguments, environ=stand_in, log=tmp_path / "*.log")
    assert lines[:4] == ["ready embed_corpus x=1"] * 4
    assert lines[4:] == [
        f"task 0 of 1 cwd={REPOSITORY} omp=2 cpus=2 gpu=0 offline=1 array={task}/4 "
        "argv=<-m><toolkit.encode><embed_corpus><x=1>"
        for task in range(4)
    ]


def test_sharding_wants_no_gpu(slurm: Cluster, stand_in: dict[str, str], tmp_path: Path) -> None:
    arguments = [
        "--cpus-per-task=4",
        f"--output={tmp_path}/log",
        "slurm/shard_wikipedia.sh",
        "--help",
    ]
    lines = submit(slurm, *arguments, environ=stand_in, log=tmp_path / "log")
    argv = "<data_scripts/shard_wikipedia.py><--workers><4><--help>"
    assert lines == [
        f"task 0 of 1 cwd={REPOSITORY} omp=4 cpus=4 gpu=none offline=1 array=none/none argv={argv}"
    ]


def test_the_directives_count_without_flags(slurm: Cluster) -> None:
    done = slurm.run(["sbatch", "--test-only", "slurm/mntp_mistral.sh"], cwd=REPOSITORY)
    assert done.returncode != 0  # 8 GPUs on a node: this cluster has one
    assert "Requested node configuration is not available" in done.stderr

"""Training, pipelines and embedding as real jobs on the four-node test cluster.

A rank needs about ten seconds to start here, so each test submits as little as shows its point.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import run, torchrun
from tests.forking.start import forked_environment, forked_python
from tests.slurm.cluster import Cluster
from tests.two_layers import two_layers
from toolkit.base.files import read_json
from toolkit.base.layout import STEP_PREFIX
from toolkit.encoding.store import VectorStore
from toolkit.runs.records import read_metrics
from toolkit.training.checkpoint import load_newest
from toolkit.training.steps import newest

pytestmark = pytest.mark.usefixtures("idle")

REPOSITORY = Path(__file__).parents[2]
ENVIRON = {"TOOLKIT_VENV": forked_environment(), "OMP_NUM_THREADS": "1"}
REAL = {"TOOLKIT_VENV": sys.prefix, "OMP_NUM_THREADS": "1"}  # with ranks that are no forks
ONE_RANK_A_NODE = ["--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--time=10"]
# What two equal runs do not share.
CLOCKS = {"seconds", "tokens_per_s", "memory_gib", "data_s", "ranks_s", "forward_s", "backward_s"}
CLOCKS |= {"step_s", "save_s"}
Door = Callable[..., str]


def launch(
    slurm: Cluster,
    *arguments: object,
    code: int = 0,
    environ: dict[str, str] | None = None,
    timeout_s: float = 60,
    real: bool = False,
) -> subprocess.CompletedProcess[str]:
    """`python -m toolkit.launch` on the login node; it and its ranks are forks unless `real`."""
    python = sys.executable if real else forked_python()
    command = [python, "-m", "toolkit.launch", *map(str, arguments)]
    environ = (REAL if real else ENVIRON) | (environ or {})
    done = slurm.run(command, environ=environ, cwd=REPOSITORY, timeout_s=timeout_s)
    assert done.returncode == code, done.stderr
    return done


def pipeline(run_dir: Path, *, shards: Path, num_nodes: int) -> list[str]:
    """The arguments that launch the tiny pipeline, with two layers of its model, one rank a
    node."""
    size = ["--nodes", str(num_nodes), "--cpus-per-task", "1", "--time-min", "10"]
    where = [f"run_dir={run_dir}", f"data.train={shards}", f"corpus.input={shards}"]
    where.append(f"model.base={two_layers()}")
    return ["--recipe", "tiny_pipeline", *size, *where]


def job_ids(printed: str) -> dict[str, str]:
    """Stage to job id, from what the launcher prints."""
    return dict(re.findall(r"^(\w+): job (\d+) \(", printed, flags=re.MULTILINE))


def wait_until(reached: Callable[[], bool], *, what: str, timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline, f"no {what} after {timeout_s} s"
        time.sleep(0.1)


def logs(folder: Path) -> str:
    """All logs in a folder, for a failure to show."""
    return "\n".join(f"{path}:\n{path.read_text()}" for path in sorted(folder.glob("*log*")))


def timeless(run_dir: Path) -> list[dict[str, float]]:
    """The metrics of a run without its clocks."""
    return [
        {key: value for key, value in row.items() if key not in CLOCKS}
        for row in read_metrics(run_dir)
    ]


def test_sbatch_equals_torchrun(
    slurm: Cluster, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """The script's ranks are real starts, those of torchrun are forks, which train alike."""
    overrides = [f"data.train={shards}", f"model.base={tiny_model}", "train.steps=4"]
    job = slurm.submit(
        *("--nodes=2", *ONE_RANK_A_NODE, f"--output={tmp_path}/log", "slurm/mntp_mistral.sh"),
        *(*overrides, f"run_dir={tmp_path}/sbatch"),
        environ=REAL | {"RECIPE": "tiny_mntp"},
        cwd=REPOSITORY,
    )
    command = [*torchrun(2), "-m", "toolkit.train", "tiny_mntp", *overrides]
    said = run([*command, f"run_dir={tmp_path}/torchrun"])
    assert "mntp: 2 ranks by torchrun" in said
    assert slurm.wait(job, timeout_s=120) == "COMPLETED", logs(tmp_path)
    assert "mntp: 2 ranks by slurm" in (tmp_path / "log").read_text()
    assert "config: zero3" in (tmp_path / "sbatch" / "config.yaml").read_text()
    assert timeless(tmp_path / "sbatch") == timeless(tmp_path / "torchrun")
    ours, theirs = load_newest(tmp_path / "sbatch"), load_newest(tmp_path / "torchrun")
    assert ours and theirs
    assert ours.step == theirs.step == 4
    assert ours.state["world_size"] == theirs.state["world_size"] == 2
    assert ours.weights.keys() == theirs.weights.keys()
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)


def test_one_command_submits_the_pipeline(slurm: Cluster, shards: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = [*pipeline(run_dir, shards=shards, num_nodes=4), "train.steps=2"]
    promised = launch(slurm, *arguments, "--dry-run").stdout
    assert list(tmp_path.iterdir()) == []
    jobs = job_ids(launch(slurm, *arguments).stdout)
    assert list(jobs) == ["mntp", "simcse", "embed"]
    for stage, before in (("simcse", "mntp"), ("embed", "simcse")):
        assert slurm.job(jobs[stage])["Dependency"] == f"afterok:{jobs[before]}(unfulfilled)"
        promised = promised.replace(f"'afterok:<id of {before}>'", f"afterok:{jobs[before]}")
    for stage, job in jobs.items():
        assert (run_dir / "logs" / stage / f"{job}_submission.sh").read_text() in promised

    for stage, job in jobs.items():
        assert slurm.wait(job, timeout_s=150) == "COMPLETED", logs(run_dir / "logs" / stage)
    for stage in ("mntp", "simcse"):
        assert (run_dir / stage / "encoder" / "COMMITTED").is_file()
        assert [row["step"] for row in timeless(run_dir / stage)] == [1, 2]
        newest = load_newest(run_dir / stage)
        assert newest
        assert newest.state["world_size"] == 4
        files = [run_dir / "logs" / stage / f"{jobs[stage]}_{rank}_log.out" for rank in range(4)]
        assert all(path.is_file() for path in files)
        assert f"{stage}: 4 ranks by slurm" in files[0].read_text()
    manifest = read_json(run_dir / "embeddings" / "manifest.json")
    assert manifest["rows"] == sum(unit["rows"] for unit in manifest["units"].values()) == 170
    for task in range(4):
        log = run_dir / "logs" / "embed" / f"{jobs['embed']}_{task}_0_log.out"
        assert f"embed: worker {task + 1} of 4" in log.read_text()
    search = [forked_python(), "-m", "toolkit.search", str(run_dir / "embeddings"), "a river"]
    hits = slurm.run(search, check=True).stdout.splitlines()
    assert hits[0] == "a river"
    assert [line[2:4] for line in hits[1::2]] == ["1.", "2.", "3.", "4.", "5."]


def test_an_array_embeds_as_one_process_does(
    slurm: Cluster, door: Door, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    overrides = [f"encoder.model={tiny_model}", f"corpus.input={shards}", "corpus.unit_rows=16"]
    job = slurm.submit(
        *("--cpus-per-task=1", "--time=10", f"--output={tmp_path}/%a.log", "slurm/embed_corpus.sh"),
        *(*overrides, f"output_dir={tmp_path}/array"),
        environ=ENVIRON | {"RECIPE": "tiny_embed"},
        cwd=REPOSITORY,
    )
    door("encode", "tiny_embed", *overrides, f"output_dir={tmp_path}/one")
    assert slurm.wait(job, timeout_s=120) == "COMPLETED", logs(tmp_path)
    array, one = VectorStore(tmp_path / "array"), VectorStore(tmp_path / "one")
    assert len(set(one.ids())) == 170
    assert array.ids() == one.ids()
    assert np.array_equal(array.vectors(), one.vectors())
    left, right = (
        {path.name: path.read_bytes() for path in (store.directory / "units").iterdir()}
        for store in (array, one)
    )
    assert len(right) == 3 * 11  # vectors, ids and marker of each unit
    assert left == right  # file for file, byte for byte


def test_an_array_of_four_shards_the_real_dump_as_one_process(
    slurm: Cluster, real_data: Path, tmp_path: Path
) -> None:
    (dump,) = (real_data / "mediawiki_dump").glob("enwiki-latest-*.bz2")
    arguments = ["--input", str(dump), "--rows-per-shard", "10", "--output"]
    job = slurm.submit(
        *("--array=0-3", "--cpus-per-task=1", "--time=10", f"--output={tmp_path}/%a.log"),
        *("slurm/shard_wikipedia.sh", *arguments, str(tmp_path / "array")),
        environ=ENVIRON,
        cwd=REPOSITORY,
    )
    run([sys.executable, "data_scripts/shard_wikipedia.py", *arguments, str(tmp_path / "one")])
    assert slurm.wait(job, timeout_s=120) == "COMPLETED", logs(tmp_path)
    left, right = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("array", "one")
    )
    assert len(left) > 15
    assert left == right
    assert not list(tmp_path.glob(".*"))
    assert "articles kept" in logs(tmp_path)


def test_a_failed_stage_takes_its_dependants_with_it(
    slurm: Cluster, shards: Path, tmp_path: Path
) -> None:
    """Only rank 0 re-hashes the shards: its failure must also end the rank that waits for it.

    Real starts, of the launcher and of the ranks that submitit runs.
    """
    damaged, run_dir = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(shards, damaged)
    blocker = slurm.submit("--nodes=4", "--exclusive", "--wrap", "sleep 600")
    slurm.wait_state(blocker, state="RUNNING")
    arguments = pipeline(run_dir, shards=damaged, num_nodes=2)
    jobs = job_ids(launch(slurm, *arguments, real=True).stdout)
    shard = next(damaged.glob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    slurm.run(["scancel", blocker], check=True)

    assert slurm.wait(jobs["mntp"], timeout_s=90) == "FAILED"
    said = (run_dir / "logs" / "mntp" / f"{jobs['mntp']}_0_log.out").read_text()
    assert re.search(rf"^error: {shard}: is damaged", said, flags=re.MULTILINE), said
    for stage in ("simcse", "embed"):
        assert slurm.wait(jobs[stage], timeout_s=30) == "CANCELLED"
        assert slurm.job(jobs[stage])["NodeList"] in ("", "(null)")  # never ran
        assert not list((run_dir / "logs" / stage).glob("*_log.out"))
    assert not (run_dir / "mntp").exists()


@pytest.mark.parametrize(
    ("arguments", "message", "written"),
    [
        (
            ["mntp.train.global_batch_rows=6", "train.fit_ranks=false"],
            "cannot be dealt to 4 ranks",
            False,
        ),
        (["--partition", "absent"], "partition 'absent': has no nodes", False),
        # Only SLURM knows this one, by which time the job's files are there.
        (["--mem-gib", "999"], "sbatch refused the job run-mntp: Memory spec", True),
    ],
)
def test_refused_at_submission(
    arguments: list[str], message: str, written: bool, slurm: Cluster, shards: Path, tmp_path: Path
) -> None:
    whole = [*pipeline(tmp_path / "run", shards=shards, num_nodes=4), "--cluster", "slurm"]
    done = launch(slurm, *whole, *arguments, code=2)
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert any(tmp_path.iterdir()) == written
    assert slurm.run(["squeue", "--noheader"], check=True).stdout == ""


def test_sbatch_accepts_what_a_dry_run_prints(slurm: Cluster, shards: Path, tmp_path: Path) -> None:
    arguments = [*pipeline(tmp_path / "run", shards=shards, num_nodes=4), "--dry-run"]
    printed = launch(slurm, *arguments, "--cluster", "auto").stdout
    scripts = re.split(r"^# ---- \w+ ----\n", printed, flags=re.MULTILINE)[1:]
    assert len(scripts) == 3
    held = slurm.submit("--hold", "--wrap", "true")
    for number, script in enumerate(scripts):
        path = tmp_path / f"{number}.sh"
        path.write_text(re.sub("<id of [a-z]+>", held, script))
        done = slurm.run(["sbatch", "--test-only", str(path)], check=True)
        assert "to start at" in done.stderr
    assert not (tmp_path / "run").exists()

    alone = {"PATH": str(Path(sys.executable).parent)}
    printed = launch(
        slurm, *pipeline(tmp_path / "run", shards=shards, num_nodes=1), "--dry-run", environ=alone
    ).stdout
    assert "# mntp: 1 process(es) on this machine" in printed
    assert "#SBATCH" not in printed
    assert not (tmp_path / "run").exists()


def test_a_requeued_job_goes_on_from_its_checkpoint(
    slurm: Cluster, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    arguments = ["--recipe", "tiny_mntp", "--nodes", "2", "--cpus-per-task", "1"]
    arguments += ["--time-min", "10", f"run_dir={run_dir}", f"data.train={shards}"]
    arguments += [f"model.base={tiny_model}"]
    arguments += ["train.steps=400", "train.horizon_steps=400", "train.save_every_steps=5"]
    job = job_ids(launch(slurm, *arguments).stdout)["mntp"]

    def saved() -> int:
        # Not a glob of markers: a temporary directory has its marker before it has its name.
        found = newest(run_dir)
        return int(found.name.removeprefix(STEP_PREFIX)) if found else 0

    wait_until(lambda: saved() > 0, what="checkpoint")
    slurm.run(["scontrol", "requeue", job], check=True)
    slurm.start_now(job)  # both ranks have ended by now
    resumed_from, first_life = saved(), read_metrics(run_dir)
    wait_until(lambda: saved() > len(first_life), what="checkpoint of the second life")
    slurm.run(["scancel", job], check=True)
    assert slurm.wait(job) == "CANCELLED"
    assert slurm.job(job)["Restarts"] == "1"

    log = (run_dir / "logs" / "mntp" / f"{job}_0_log.out").read_text()
    assert log.count("mntp: 2 ranks by slurm") == 2  # appended, not overwritten
    both = read_metrics(run_dir)
    assert [row["step"] for row in both] == list(range(1, len(both) + 1))
    # The clocks in the rows are those of the first life: these steps were not done again.
    assert 5 <= resumed_from <= len(first_life)
    assert both[:resumed_from] == first_life[:resumed_from]
    # Steps after the checkpoint were lost and done again, with the same result.
    lost = slice(resumed_from, len(first_life))
    assert [row["loss"] for row in both[lost]] == [row["loss"] for row in first_life[lost]]

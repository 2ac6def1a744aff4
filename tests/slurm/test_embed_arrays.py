"""On a real SLURM: arrays that reuse an encoding, that read documents whole, and that score an
encoder on one large corpus. Each loses a task half-way, and the others finish its work."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.benchmarks.bench_corpora import make_recipe
from tests.conftest import contents
from tests.encoding.company import company_changes_bits
from tests.slurm.cluster import Cluster
from tests.slurm.test_jobs import ENVIRON, REPOSITORY
from tests.text.making import shard_articles
from toolkit.base.files import read_json
from toolkit.encoding.store import VectorStore
from toolkit.text.records import Article
from toolkit.text.shards import open_shards

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("idle")]

Door = Callable[..., str]
LATE = ("corpus.chunk_tokens=32", "corpus.chunk_overlap=4", "corpus.chunk_context=document")


def wait_for_units(folder: Path, *, number: int, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while len(list(folder.glob("units/*.json"))) < number:
        assert time.monotonic() < deadline, "no unit was written"
        time.sleep(0.02)


def kill_a_task(slurm: Cluster, job: str) -> None:
    """The processes of one task, wherever it is."""
    (victim, *_) = [task for task in slurm.jobs(job) if task["JobState"] == "RUNNING"]
    task = f"{job}_{victim['ArrayTaskId']}"
    slurm.run(["scancel", "--signal=KILL", "--full", task], check=True)


def states(slurm: Cluster, job: str, *, timeout_s: float) -> list[str]:
    """Of all tasks of an array, at its end."""
    slurm.wait(job, timeout_s=timeout_s)
    return sorted(task["JobState"] for task in slurm.jobs(job))


def array(slurm: Cluster, output: Path, *overrides: str) -> None:
    """Three tasks, one of which is killed once there are some units, to the end of the work."""
    job = slurm.submit(
        *("--array=0-2", "--cpus-per-task=1", "--time=10", f"--output={output}.%a.log"),
        *("slurm/embed_corpus.sh", *overrides, f"output_dir={output}"),
        environ=ENVIRON | {"RECIPE": "tiny_embed"},
        cwd=REPOSITORY,
    )
    wait_for_units(output, number=3)
    kill_a_task(slurm, job)
    assert states(slurm, job, timeout_s=240) == ["CANCELLED", "COMPLETED", "COMPLETED"]


def older(shards: Path, *, folder: Path) -> Path:
    """Shards of half of the texts, under other ids."""
    opened = open_shards(shards)
    articles = [
        Article(f"old{row}", "", url="", text=opened.text(row))
        for row in range(1, opened.num_rows, 2)
    ]
    return shard_articles(articles, output=folder / "shards")


@pytest.mark.parametrize("settings", [("vectors=int8",), LATE], ids=["rows", "late chunks"])
@pytest.mark.parametrize("reuse", [False, True], ids=["from scratch", "reuse"])
def test_an_array_writes_the_bytes_of_one_worker(
    settings: Sequence[str],
    reuse: bool,
    slurm: Cluster,
    door: Door,
    shards: Path,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    given = [f"encoder.model={tiny_model}", "encoder.max_tokens=512", "lease_s=5", *settings]
    given += ["corpus.unit_rows=16" if settings == LATE else "corpus.unit_rows=2"]
    here = [*given, f"corpus.input={shards}"]
    extra = []
    if reuse:
        before = older(shards, folder=tmp_path)
        old = f"output_dir={tmp_path / 'old'}"
        door("encode", "tiny_embed", *given, f"corpus.input={before}", old)
        extra = [f"reuse={tmp_path / 'old'}"]
    array(slurm, tmp_path / "array", *here, *extra)
    door("encode", "tiny_embed", *here, f"output_dir={tmp_path / 'one'}")
    made, wanted = VectorStore(tmp_path / "array", verify=True), VectorStore(tmp_path / "one")
    assert made.ids() == wanted.ids()
    found = contents(tmp_path / "array")
    if reuse:
        record = json.loads(found.pop("reuse.json"))
        assert (record["reused"], record["new"] + record["changed"]) == (85, 85)
    assert found == contents(tmp_path / "one") or company_changes_bits(tiny_model)
    assert not (tmp_path / "array" / "leases").exists()
    assert " rows in the source = " in door("verify", tmp_path / "array")


def test_an_array_scores_one_corpus_together(
    slurm: Cluster, door: Door, real_data: Path, tmp_path: Path
) -> None:
    """Cranfield: two workers, one of which is killed; a third one comes to its place."""
    recipe = make_recipe(tmp_path, data=real_data, short=False)
    given = ["encoders.tiny.max_tokens=128", "lease_s=5"]
    door("evaluate", recipe, *given, f"output_dir={tmp_path / 'one'}", "share_corpora=false")
    launched = tmp_path / "two"
    command = ["toolkit.evaluate", recipe, *given, f"output_dir={launched}"]
    line = " ".join(["exec", "python", "-m", *map(str, command)])
    environ = {"PATH": f"{Path(ENVIRON['TOOLKIT_VENV']) / 'bin'}:/usr/bin:/bin"}
    environ |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

    def submit(tasks: str) -> str:
        return slurm.submit(
            *(f"--array={tasks}", "--cpus-per-task=1", "--time=10"),
            *(f"--output={tmp_path}/%A-%a.log", "--wrap", line),
            environ=environ,
            cwd=REPOSITORY,
        )

    job = submit("0-1")
    deadline = time.monotonic() + 120
    while not (folders := list(launched.glob("corpora/*"))):
        assert time.monotonic() < deadline, "no corpus was begun"
        time.sleep(0.05)
    wait_for_units(folders[0], number=2)
    kill_a_task(slurm, job)
    third = submit("2")
    assert states(slurm, job, timeout_s=300) == ["CANCELLED", "COMPLETED"]
    assert states(slurm, third, timeout_s=300) == ["COMPLETED"]
    (tiny,) = read_json(launched / "scores.json").values()
    (wanted,) = read_json(tmp_path / "one" / "scores.json").values()
    assert tiny == wanted
    shares = [log.read_text().partition(": embedded ")[2] for log in tmp_path.glob("*-*.log")]
    assert sum(bool(share) for share in shares) >= 2, shares

"""What could start, and what is refused by one process before any rank is there."""

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit import ready
from toolkit.base.errors import BadInput, RunFailed
from toolkit.base.files import write_json
from toolkit.cluster.topology import ranks_of_job
from toolkit.command_line import door


@pytest.fixture
def arguments(shards: Path, tiny_model: Path, tmp_path: Path) -> list[str]:
    where = [f"data.train={shards}", f"model.base={tiny_model}", f"run_dir={tmp_path / 'run'}"]
    return ["tiny_mntp", *where]


def test_what_would_run_is_ready_and_nothing_is_written(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ready.main([*arguments, "--ranks", "2"]) == 0
    assert capsys.readouterr().out == "ready: mntp\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["train.stpes=1"], "unknown key 'train.stpes'"),
        (["--ranks", "3", "train.fit_ranks=false"], "cannot be dealt to 3 ranks"),
        (["--ranks", "0"], "--ranks 0: at least 1"),
        (["data.train=nowhere"], "mntp: nowhere: no whole shard directory; make it with"),
        (["model.base=runs/absent/model"], "no such folder"),
        (["model.base=us/absent"], "us/absent is not in this machine's hub cache"),
        (["train.steps=3"], "has step 4 already, and train.steps=3; give at least 4"),
        (["run_dir=/dev/null/run"], "/dev/null is a file"),
    ],
)
def test_what_would_be_refused_is_one_line(
    more: list[str],
    message: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    step = tmp_path / "run" / "checkpoints" / "step-00000004"
    step.mkdir(parents=True)
    (step / "COMMITTED").touch()
    assert ready.main([*arguments, *more]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1, said


def test_half_a_model_is_no_model(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A download that was cut short, which the job would find when it loads."""
    folder = tmp_path / "model"
    folder.mkdir()
    weights = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    write_json(folder / "config.json", {})
    write_json(folder / "model.safetensors.index.json", weights)
    (folder / "1.safetensors").touch()
    assert ready.main([*arguments, f"model.base={folder}"]) == 2
    assert f"{folder} is not whole here (no 2.safetensors)" in capsys.readouterr().err
    (folder / "2.safetensors").touch()
    assert ready.main([*arguments, f"model.base={folder}"]) == 0


def test_every_stage_of_a_pipeline_is_looked_at(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"run_dir={tmp_path / 'run'}", f"data.train={shards}"]
    assert ready.main(["tiny_pipeline", *given, f"corpus.input={shards}"]) == 0
    assert capsys.readouterr().out == "ready: mntp, simcse, embed\n"
    assert ready.main(["tiny_pipeline", *given, "corpus.input=nowhere"]) == 2
    assert "embed: nowhere: no whole shard directory" in capsys.readouterr().err


def test_an_array_of_workers_that_are_each_alone_is_refused(
    shards: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = ["tiny_embed", f"corpus.input={shards}", f"encoder.model={tiny_model}"]
    given += [f"output_dir={tmp_path / 'out'}", "schedule=alone"]
    assert ready.main(given) == 0
    for name, value in {"ID": "1", "MIN": "0", "COUNT": "4"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert ready.main(given) == 2


@pytest.mark.parametrize(
    ("environ", "ranks"),
    [
        ({}, 1),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8"}, 16),
        ({"SLURM_JOB_ID": "1", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8"}, 16),
        ({"SLURM_JOB_ID": "1", "SLURM_NNODES": "3"}, 3),
        ({"SLURM_JOB_ID": "1"}, 1),
        ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}, 4),
    ],
)
def test_the_ranks_of_a_job_by_its_batch_script(environ: dict[str, str], ranks: int) -> None:
    assert ranks_of_job(environ) == ranks


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("handler")
def test_a_rank_that_ends_is_deaf_to_the_term_that_the_first_to_end_causes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(door.time, "sleep", waits.append)
    before = signal.getsignal(signal.SIGTERM)

    def ended(error: BadInput | RunFailed) -> tuple[int, bool]:
        code = door.end_with(error)
        return code, signal.getsignal(signal.SIGTERM) is signal.SIG_IGN

    assert ended(BadInput("alone")) == (2, False)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert ended(BadInput("not met")) == (2, True)
    assert waits == [door.LINGER_S]  # the others may not have started
    signal.signal(signal.SIGTERM, before)
    together = BadInput("agreed")
    together.agreed = together.quiet = True
    assert ended(together) == (2, True)
    assert ended(RunFailed("later")) == (1, True)
    assert waits == [door.LINGER_S]
    said = capsys.readouterr().err
    assert said == "error: alone\nerror: not met\nerror: later\n"


def test_what_one_rank_finds_all_ranks_refuse_once(
    shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Rank 0 alone re-hashes the shards: the other is told, and nobody has to kill it."""
    from tests.conftest import run, torchrun

    shutil.copytree(shards, tmp_path / "shards")
    (file,) = (tmp_path / "shards").glob("*.parquet")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    command = [*torchrun(2), "-m", "toolkit.train", "tiny_mntp", f"run_dir={tmp_path / 'run'}"]
    command += [f"data.train={tmp_path / 'shards'}", f"model.base={tiny_model}"]
    said = run(command, code=1)  # torchrun's own
    assert said.count("error: ") == said.count("is damaged") == 1, said
    assert "watchdog: " not in said
    assert not (tmp_path / "run").exists()


def test_the_readmes_exit_codes_are_those_of_the_code() -> None:
    from tests.conftest import ROOT
    from toolkit.cluster.preempt import INTERRUPTED
    from toolkit.cluster.watchdog import WATCHDOG_EXIT

    table = (ROOT / "README.md").read_text().partition("| exit code |")[2].partition("\n\n")[0]
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)]
    assert codes == [0, door.FAILED, door.BAD_INPUT, WATCHDOG_EXIT, INTERRUPTED]

"""Nothing is unpickled but what processes of one job tell each other; nobody outside is called."""

import dataclasses
import json
import os
import pickle
import shutil
import stat
import sys
from collections import OrderedDict
from pathlib import Path

import pytest

from tests.conftest import QUICKSTART, need, torchrun
from tests.faults.audited import MESSAGES, MPI, SUBMITIT, audited, in_one_process
from tests.mpi import mpi_command

SECRETS = {
    name: f"{name.lower()}-4711"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "SOME_PASSWORD")
}


def test_the_hook_sees_a_pickle_and_who_reads_it(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(pickle.dumps(OrderedDict()))
    read = f"import pickle; pickle.load(open({str(tmp_path / 'x')!r}, 'rb'))"
    # In a process that a process has started.
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {read!r}], check=True)"
    _, found = audited([sys.executable, "-c", outer], file=tmp_path / "audit")
    assert found == {"collections.OrderedDict\t<string>"}


@dataclasses.dataclass(frozen=True)
class Doors:
    """What doors have done: where they wrote, what they said, and what was unpickled."""

    folder: Path
    printed: str
    found: set[str]


def without_network() -> list[str]:
    """What a command begins with to run with the loopback alone, or nothing where that cannot be
    had."""
    if os.geteuid() or not all(map(shutil.which, ("unshare", "ip"))):
        return []
    outside = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
    checked = f'! {sys.executable} -c "{outside}" 2> /dev/null'
    return ["unshare", "--net", "bash", "-c", f'ip link set lo up && {checked} && exec "$@"', "-"]


def with_secrets() -> dict[str, str]:
    """Our environment with all secrets but the hub's, with which no start would be a fork."""
    return {**os.environ, **{n: text for n, text in SECRETS.items() if n != "HF_TOKEN"}}


@pytest.fixture(scope="module")
def doors(shards: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Doors:
    """ZeRO-3 and LoRA on two ranks, resumed; then all other doors in one process, which is told
    secrets, and nothing about being offline."""
    tmp_path = tmp_path_factory.mktemp("doors")
    run_dir, vectors, encoder = tmp_path / "run", tmp_path / "vectors", tmp_path / "encoder"
    given = [f"data.train={shards}", f"model.base={tiny_model}"]
    audit = tmp_path / "audit"
    where = ["tiny_mntp", *given, f"run_dir={run_dir / 'tiny_mntp'}"]
    pieces = [["toolkit.train", *where, f"train.steps={steps}"] for steps in (1, 2)]
    ranks = [*torchrun(2), *in_one_process(pieces)[1:]]
    printed, found_in_ranks = audited(ranks, file=audit, is_real=False, environ=with_secrets())
    assert printed.count("AUDITED ") == 2 * len(pieces) and "goes on after step 1" in printed
    simcse = ["toolkit.train", "tiny_simcse", *given, "model.lora=null", f"run_dir={run_dir / 'c'}"]
    lines = [{"query": f"river {n}", "positive": f"A river {n}.", "negative": "x"} for n in (1, 2)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs, made, mntp = tmp_path / "pairs", tmp_path / "shards", run_dir / "tiny_mntp"
    supervised = ["tiny_supervised", f"data.train={pairs}", f"model.base={mntp}"]
    (tmp_path / "launched").mkdir()
    words = str(tmp_path / "w.conll")
    evaluation = {
        "kind": "evaluate",
        "output_dir": str(tmp_path / "scores"),
        "encoders": {"one": {"model": str(encoder), "max_tokens": 8}},
        "retrieval": {
            "a": {"corpus": str(shards), "queries": str(QUICKSTART / "queries_dev.jsonl")}
        },
        "sts": {"b": str(QUICKSTART / "sts_dev.tsv")},
        "words": {"c": {"train": words, "test": words, "column": 2, "steps": 3}},
    }
    (tmp_path / "w.conll").write_text("A X\nb Y\n\nC X\nd Y\n")
    (tmp_path / "evaluate.yaml").write_text(json.dumps(evaluation))
    dump, embed = QUICKSTART / "encyclopedia.xml.bz2", ["tiny_embed", f"output_dir={vectors}"]
    dry = [
        "--cluster",
        "slurm",
        "--gpus-per-node",
        "1",
        "--dry-run",
        f"run_dir={tmp_path / 'launched' / 'a'}",
    ]
    commands = [
        ["data_scripts.shard_wikipedia", "--input", dump, "--output", made, "--deduplicate"]
        + ["near", "--model", tiny_model],
        ["data_scripts.verify_shards", made],
        ["data_scripts.prepare_pairs", "--input", tmp_path / "pairs.jsonl", "--output", pairs],
        ["data_scripts.list_texts", *simcse[1:], "train.steps=1"]
        + ["--output", tmp_path / "texts.jsonl"],
        [*simcse, "train.steps=1"],
        [*simcse, "train.steps=2"],
        ["toolkit.train", *supervised, f"run_dir={run_dir / 's'}", "train.global_batch_rows=2"]
        + ["train.steps=1", "train.micro_batch_rows=2"],
        ["toolkit.export", mntp, encoder],
        ["toolkit.encode", *embed, f"encoder.model={encoder}", f"corpus.input={shards}"],
        ["toolkit.export", vectors, tmp_path / "vectors.parquet"],
        ["toolkit.search", vectors, "--build-index", "ivf"],
        ["toolkit.search", vectors, "a river", "--index", "ivf", "--verify"],
        ["data_scripts.mine_negatives", "--pairs", pairs, "--embeddings", vectors]
        + ["--output", tmp_path / "mined"],
        ["toolkit.evaluate", tmp_path / "evaluate.yaml"],
        ["toolkit.verify", mntp, shards, vectors, encoder, tiny_model],
        ["toolkit.status", mntp, vectors, tmp_path / "scores"],
        ["toolkit.report", mntp],
        ["toolkit.report", vectors],
        ["toolkit.plan", "tiny_mntp", *given],
        ["toolkit.prefetch", "tiny_mntp", *given, f"run_dir={tmp_path / 'launched'}"],
        ["toolkit.launch", "--recipe", "tiny_mntp", *given, *dry],
    ]
    told = ("HF_", "TRANSFORMERS_")
    environ = {name: text for name, text in os.environ.items() if not name.startswith(told)}
    command = [*without_network(), *in_one_process(commands)]
    printed, found = audited(command, file=audit, environ={**environ, **SECRETS})
    assert printed.count("AUDITED ") == len(commands)
    return Doors(tmp_path, printed, found_in_ranks | found)


def test_no_door_unpickles(doors: Doors) -> None:
    assert doors.found == set()


def test_no_door_needs_a_network(doors: Doors) -> None:
    """They have run where there is none. (Jobs of a launcher, and several ranks: test_prefetch.)"""
    need(bool(without_network()), "needs root, unshare and iproute2")
    assert "AUDITED toolkit.evaluate" in doors.printed


def test_no_file_of_a_door_tells_what_the_environment_holds(doors: Doors) -> None:
    assert len(files_below(doors.folder)) > 30
    assert_no_secret(doors.printed, doors.folder)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def assert_no_secret(printed: str, folder: Path) -> None:
    """No record, log or pickled job tells what the environment holds."""
    for secret in SECRETS.values():
        assert secret not in printed
        assert [path for path in files_below(folder) if secret.encode() in path.read_bytes()] == []


def test_what_is_unpickled_is_what_processes_of_one_command_say(tmp_path: Path) -> None:
    """The exceptions that the README of toolkit/training names: several processes, MPI ranks
    (submitit: below)."""
    script = [sys.executable, "data_scripts/shard_wikipedia.py"]
    script += ["--input", str(QUICKSTART / "encyclopedia.xml.bz2"), "--output"]
    audit = tmp_path / "audit"
    _, found = audited([*script, tmp_path / "a", "--workers", 2], file=audit)
    assert found == {MESSAGES}
    _, found = audited(mpi_command([[*script, str(tmp_path / "b")]] * 2), file=audit)
    assert found == {MPI}


@pytest.mark.parametrize("umask", [0o022, 0o002])
def test_job_folders_are_their_owners(
    umask: int, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Logs and submitit's pickled job lie in the folder of a stage: 0700, whatever the umask."""
    command = f"umask {umask:o}; exec {sys.executable} -m toolkit.launch --recipe tiny_mntp"
    where = f"--cluster local data.train={shards} run_dir={tmp_path / 'run'} train.steps=1"
    launch = f"{command} {where} model.base={tiny_model}"
    printed, found = audited(
        ["bash", "-c", launch], file=tmp_path / "audit", is_real=False, environ=with_secrets()
    )
    assert found == {SUBMITIT}
    assert_no_secret(printed, tmp_path)
    folder = tmp_path / "run" / "logs" / "mntp"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) & 0o077 != 0  # results are for others

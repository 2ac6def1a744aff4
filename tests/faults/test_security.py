"""Nothing is unpickled on the way from shards to vectors, and nobody is called outside."""

import os
import pickle
import shutil
import stat
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest

from tests.conftest import QUICKSTART, ROOT, need, run, torchrun

SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "SOME_PASSWORD")
SCRIPT = str(Path(__file__).with_name("audited.py"))


def audited(door: str, *arguments: object, ranks: int = 1) -> str:
    python = torchrun(ranks) if ranks > 1 else [sys.executable]
    return run([*python, SCRIPT, door, *map(str, arguments)])


def test_the_hook_sees_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(pickle.dumps(OrderedDict()))
    assert "UNPICKLED collections.OrderedDict" in audited("pickle", tmp_path / "x")


def test_nothing_is_unpickled_from_training_to_search(
    shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """ZeRO-3 and LoRA on two ranks, resumed; exported; a corpus embedded, searched and checked."""
    run_dir, vectors = tmp_path / "run", tmp_path / "vectors"
    given = [f"data.train={shards}", f"model.base={tiny_model}", f"run_dir={run_dir}"]
    for recipe, more in (("tiny_mntp", []), ("tiny_simcse", ["model.lora=null"])):
        where = [*given[:2], f"run_dir={run_dir / recipe}", *more]
        for steps in (1, 2):
            printed = audited("train", recipe, *where, f"train.steps={steps}", ranks=2)
            assert printed.count("AUDITED train") == 2
            assert "UNPICKLED" not in printed
    encoder = tmp_path / "encoder"
    embed = ["tiny_embed", f"encoder.model={encoder}", f"corpus.input={shards}"]
    for door, *arguments in (
        ["export", run_dir / "tiny_mntp", encoder],
        ["encode", *embed, f"output_dir={vectors}"],
        ["search", vectors, "a river"],
        ["verify", run_dir / "tiny_mntp", shards, vectors],
    ):
        printed = audited(str(door), *arguments)
        assert f"AUDITED {door}" in printed
        assert "UNPICKLED" not in printed


def test_the_pipeline_runs_without_a_network(tiny_model: Path, tmp_path: Path) -> None:
    """In a network namespace with the loopback alone, and nothing told about being offline."""
    need(os.geteuid() == 0 and bool(shutil.which("unshare")), "needs root and unshare")
    need(bool(shutil.which("ip")), "needs iproute2")
    python, shards = sys.executable, tmp_path / "shards"
    outside = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
    dump = QUICKSTART / "encyclopedia.xml.bz2"
    pipeline = (
        f"--recipe tiny_pipeline --cluster local --gpus-per-node 2 model.base={tiny_model} "
        f"run_dir={tmp_path / 'run'} data.train={shards} corpus.input={shards} train.steps=2"
    )
    script = "\n".join(
        [
            "set -euo pipefail",
            "ip link set lo up",
            f'if {python} -c "{outside}" 2> /dev/null; then echo outside; exit 9; fi',
            f"{python} data_scripts/shard_wikipedia.py --input {dump} --output {shards}",
            f"{python} -m toolkit.launch {pipeline}",
            f"{python} -m toolkit.search {tmp_path / 'run' / 'embeddings'} river",
        ]
    )
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    secrets = {name: f"{name.lower()}-4711" for name in SECRETS}
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", script],
        cwd=ROOT,
        env={**environ, **secrets, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "river" in done.stdout.splitlines()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 30
    for (
        secret
    ) in secrets.values():  # no record, log or pickled job tells what the environment holds
        assert secret not in done.stdout + done.stderr
        assert [path for path in written if secret.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("umask", [0o022, 0o002])
def test_job_folders_are_their_owners(umask: int, shards: Path, tmp_path: Path) -> None:
    """Logs and submitit's pickled job lie in the folder of a stage: 0700, whatever the umask."""
    command = f"umask {umask:o}; exec {sys.executable} -m toolkit.launch --recipe tiny_mntp"
    where = f"--cluster local data.train={shards} run_dir={tmp_path / 'run'} train.steps=1"
    run(["bash", "-c", f"{command} {where} model.base={QUICKSTART / 'tiny-mistral'}"])
    folder = tmp_path / "run" / "logs" / "mntp"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) & 0o077 != 0  # results are for others

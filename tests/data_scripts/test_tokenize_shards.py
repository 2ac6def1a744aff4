"""Tokens made beforehand: the tasks of an array share the work, and no work is done twice."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.forking.start import forked_python
from toolkit.text.shards import open_shards
from toolkit.text.verify import verify

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    out = tmp_path / "shards"
    dump = ROOT / "toolkit" / "quickstart" / "encyclopedia.xml.bz2"
    script = ROOT / "data_scripts" / "shard_wikipedia.py"
    command = [forked_python(), str(script), "--input", str(dump), "--output", str(out)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--rows-per-shard", "40"], env=environ, check=True, timeout=300)
    return out


def tokenize(
    shards: Path, model: Path | str, *arguments: str, task: int | None = None
) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    if task is not None:
        array = {"ID": task, "COUNT": 3, "MIN": 0, "MAX": 2}
        environ |= {f"SLURM_ARRAY_TASK_{key}": str(value) for key, value in array.items()}
    return subprocess.run(
        [forked_python(), str(ROOT / "data_scripts" / "tokenize_shards.py")]
        + ["--shards", str(shards), "--model", str(model), *arguments],
        env={**environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_tasks_share_the_shards_and_the_last_one_finishes(many: Path, tiny_model: Path) -> None:
    length = ("--max-tokens", "64")
    first, second, third = (tokenize(many, tiny_model, *length, task=n) for n in range(3))
    for done in (first, second, third):
        assert done.returncode == 0, done.stderr
    assert "shards done; the other tasks have theirs to do" in first.stdout
    assert "shards done; the other tasks have theirs to do" in second.stdout
    assert "tokens of 170 documents (170 of them cut) in " in third.stdout
    (directory,) = (many / ".cache").glob("tokens-*")
    before = {path.name: path.stat().st_mtime_ns for path in directory.glob("*.safetensors")}
    assert len(before) == 2 * -(-open_shards(many).num_rows // 40)
    again = tokenize(many, tiny_model, *length)
    assert again.stdout.splitlines()[-1] == third.stdout.splitlines()[-1]
    assert before == {
        path.name: path.stat().st_mtime_ns for path in directory.glob("*.safetensors")
    }
    without = tokenize(many, tiny_model, *length, "--held-out-documents", "20", "--seed", "7")
    assert "tokens of 150 documents" in without.stdout, without.stderr
    assert without.stdout.endswith("; 20 documents are held out\n")
    assert (directory / "blocks-64-without-20-7.json").is_file()
    assert verify(many) == []


def test_bad_input_is_one_line(tmp_path: Path, many: Path, tiny_model: Path) -> None:
    cases = {
        "--max-tokens 4: give a number from 8": tokenize(many, tiny_model, "--max-tokens", "4"),
        "give numbers from 0": tokenize(many, tiny_model, "--held-out-documents", "-1"),
        "held_out_documents=170: the shards hold 170 documents": tokenize(
            many, tiny_model, "--held-out-documents", "170"
        ),
        "no such directory": tokenize(tmp_path / "absent", tiny_model),
        "no such folder, and not a hub name": tokenize(many, tmp_path / "model"),
    }
    for message, done in cases.items():
        assert done.returncode == 2, (message, done.stderr)
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ") and message in line

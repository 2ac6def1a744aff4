"""`launch --check` and `launch --wait` on the real SLURM, Ctrl-C on a real terminal among it."""

import itertools
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import QUICKSTART
from tests.forking.start import forked_python
from tests.slurm.cluster import Cluster
from tests.slurm.test_jobs import ENVIRON, REPOSITORY, launch, pipeline
from toolkit.base.files import read_json

pytestmark = pytest.mark.usefixtures("idle")
TINY = ("--recipe", "tiny_mntp", "--gpus-per-node", "1", "--cpus-per-task", "1")


def test_a_check_tells_what_the_ranks_see(slurm: Cluster, shards: Path, tmp_path: Path) -> None:
    arguments = [*TINY, "--nodes", "2", "--check", f"data.train={shards}"]
    done = launch(slurm, *arguments, f"run_dir={tmp_path / 'run'}", timeout_s=120)
    assert "preflight: 2 ranks on 2 hosts, same code and data" in done.stdout
    assert done.stdout.endswith("check: all ranks could start\n")
    for figure in ("matmul", "all-reduce", "clocks within", "GB free"):
        assert done.stdout.replace("_", "-").count(figure) == 1, done.stdout
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["logs"]


def test_a_check_says_what_is_wrong(slurm: Cluster, shards: Path, tmp_path: Path) -> None:
    """Found where the job runs: the login node looks at names only."""
    damaged = tmp_path / "shards"
    subprocess.run(["cp", "-r", shards, damaged], check=True)
    (file,) = damaged.glob("*.parquet")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    arguments = [*TINY, "--nodes", "2", "--check", f"data.train={damaged}"]
    done = launch(slurm, *arguments, f"run_dir={tmp_path / 'run'}", code=2, timeout_s=120)
    assert re.search(rf"^error: .*{file.name}", done.stderr, flags=re.MULTILINE), done.stderr


@pytest.mark.parametrize("fails", [False, True])
def test_it_waits_for_the_end(fails: bool, slurm: Cluster, shards: Path, tmp_path: Path) -> None:
    arguments = [*pipeline(tmp_path / "run", shards=shards, num_nodes=1), "train.steps=2", "--wait"]
    if fails:
        arguments += ["simcse.train.max_skipped_steps=0", "simcse.train.lr=1e38"]
    done = launch(slurm, *arguments, code=int(fails), timeout_s=300)
    lines = done.stdout.splitlines()
    assert "mntp: done, 2/2 steps" in lines, done.stdout
    assert ("embed: done" in done.stdout) is not fails
    assert any(line.startswith("simcse: PENDING (waits for the job before it)") for line in lines)
    if fails:
        assert re.search(r"^error: simcse: FAILED: ", done.stderr, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("answer", "state"), [(b"d\n", "PENDING"), (b"c\n", "CANCELLED"), (b"\x03", "PENDING")]
)
def test_ctrl_c_asks(
    answer: bytes, state: str, slurm: Cluster, shards: Path, tmp_path: Path
) -> None:
    command = waiting(slurm, shards=shards, run_dir=tmp_path / "run")
    child, terminal = pty.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background ignores it
        os.chdir(REPOSITORY)
        os.execve(command[0], command, {**slurm.environ, **ENVIRON, "TERM": "xterm"})
    seen = read_until(terminal, "waits for the job before it")
    time.sleep(0.5)
    os.write(terminal, b"\x03")
    read_until(terminal, "[w]atch on?")
    # Between the question and the read behind it an interrupt is noted, and heard at the next key.
    time.sleep(0.5)
    os.write(terminal, answer)
    rest = read_until(terminal, "from the last checkpoint" if b"c" in answer else "jobs go on; see")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, rest
    os.close(terminal)
    (job,) = re.findall(r"mntp: job (\d+)", seen)
    assert slurm.job(job)["JobState"] == state


def test_an_interrupt_without_a_terminal_only_stops_following(
    slurm: Cluster, shards: Path, tmp_path: Path
) -> None:
    command = waiting(slurm, shards=shards, run_dir=tmp_path / "run")
    environ = {**slurm.environ, **ENVIRON}
    with subprocess.Popen(
        ["env", "--default-signal=INT", *command],
        cwd=REPOSITORY,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        seen = ""
        while "mntp: PENDING" not in seen:
            line = process.stdout.readline()
            assert line, f"it has ended: {seen}"
            seen += line
        process.send_signal(signal.SIGINT)
        assert "the jobs go on; see python -m toolkit.status" in process.stdout.read()
    assert process.returncode == 0
    (job,) = re.findall(r"mntp: job (\d+)", seen)
    assert slurm.job(job)["JobState"] == "PENDING"


def waiting(slurm: Cluster, *, shards: Path, run_dir: Path) -> list[str]:
    """A launch that follows a job which cannot begin."""
    holder = slurm.submit("--hold", "--wrap", "true")
    command = [forked_python(), "-m", "toolkit.launch", *TINY, f"run_dir={run_dir}"]
    return [*command, f"data.train={shards}", "--wait", "--dependency", f"afterok:{holder}"]


def read_until(terminal: int, text: str, *, timeout_s: float = 60) -> str:
    """What the terminal shows up to there, without colours; blanks and line breaks as one blank."""
    seen, shown, until = b"", "", time.monotonic() + timeout_s
    while text not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, until - time.monotonic()))
        assert ready, f"no {text!r} after {timeout_s} s in {shown}"
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # the other end is closed
            pytest.fail(f"no {text!r} in {shown}")
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode(errors="replace"))
        shown = " ".join(plain.split())
    return shown


def test_an_evaluation_is_an_array_whose_tasks_share_the_work(
    slurm: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    """Two encoders, two tasks, three workers: each part is scored by one of them."""
    encoder = {"model": str(tiny_model), "max_tokens": 32}
    recipe = {
        "kind": "evaluate",
        "output_dir": str(tmp_path / "scores"),
        "encoders": {"causal": {**encoder, "causal": True}, "both": encoder},
        "sts": {part: str(QUICKSTART / f"sts_{part}.tsv") for part in ("dev", "test")},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    arguments = ["--recipe", str(tmp_path / "mine.yaml"), "--nodes", "3", "--gpus-per-node", "1"]
    done = launch(slurm, *arguments, "--cpus-per-task", "1", "--wait", timeout_s=300)
    assert "evaluate: done" in done.stdout, done.stdout + done.stderr
    scores = read_json(tmp_path / "scores" / "scores.json")
    assert {name: len(row) for name, row in scores.items()} == {"causal": 8, "both": 8}
    logs = [path.read_text() for path in (tmp_path / "scores" / "logs").rglob("*.out")]
    assert sum(text.count("is scored") for text in logs) == 4
    assert sum("is scored" in text for text in logs) > 1


def test_a_throttle_holds_tasks_of_an_array_back(
    slurm: Cluster, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    arguments = ["--recipe", "tiny_embed", "--nodes", "3", "--gpus-per-node", "1", "--wait"]
    arguments += ["--cpus-per-task", "1", "--array-throttle", "1", f"corpus.input={shards}"]
    arguments += [f"encoder.model={tiny_model}", f"output_dir={tmp_path / 'encoding'}"]
    done = launch(slurm, *arguments, timeout_s=300)
    (job,) = re.findall(r"embed: job (\d+)", done.stdout)
    assert slurm.wait(job, timeout_s=200) == "COMPLETED"
    times = sorted((task["StartTime"], task["EndTime"]) for task in slurm.jobs(job))
    assert len(times) == 3
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times)), times

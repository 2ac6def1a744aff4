"""Where a run stands, by what real runs and encodings have written."""

import io
import json
import os
import random
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from submitit import LocalExecutor

from tests.cluster import ended
from tests.encoding.conftest import embed
from toolkit import status, train
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, read_json_lines, write_json
from toolkit.base.layout import LEASE_DIR
from toolkit.cluster.leases import Leases
from toolkit.cluster.queue import JobState
from toolkit.cluster.submit import JobFailed, Resources, run_here
from toolkit.runs import standing
from toolkit.runs.launched import Launched, write_launched
from toolkit.runs.standing import Standing
from toolkit.runs.table import duration
from toolkit.training import program

Told = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, shards: Path, tiny_model: Path) -> Path:
    """A launch of three stages: the first is done, the second stopped half-way, the third waits."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    data = [f"data.train={shards}", f"model.base={tiny_model}", "train.log_every_steps=1"]
    for name, steps in (("mntp", 2), ("simcse", 3)):
        given = [*data, f"run_dir={folder / name}", f"train.steps={steps}"]
        assert train.main([f"tiny_{name}", *given, "train.save_every_steps=1"]) == 0
    shutil.rmtree(folder / "simcse" / "encoder")
    steps = {"mntp": 2, "simcse": 9, "embed": None}
    stages = [
        Launched(name, name, str(folder / name), str(folder / "logs" / name), number)
        for name, number in steps.items()
    ]
    write_launched(folder, stages)
    return folder


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    def call(*arguments: object) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert status.main([*map(str, arguments), "--json"]) == 0
        found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        return found

    return call


def test_the_stages_of_a_pipeline(pipeline: Path, told: Told) -> None:
    done, running, waits = told(pipeline)
    assert [one["stage"] for one in (done, running, waits)] == ["mntp", "simcse", "embed"]
    assert (done["state"], done["done"], done["total"]) == ("done", 2, 2)
    assert done["left_s"] is None
    assert (running["state"], running["done"], running["total"]) == ("running", 3, 9)
    assert running["left_s"] > 0 and running["tokens_per_s"] > 0 and running["loss"] > 0
    assert 0 <= running["last_sign_s"] < 120
    assert (waits["state"], waits["total"]) == ("not begun", 0)


def test_the_last_heartbeat_of_each_node(
    pipeline: Path, told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pipeline / "simcse" / "heartbeats.json"
    beats = [
        {"node": f"n{n}", "seconds": float(n), "step": 3, "phase": "backward"} for n in range(10)
    ]
    path.write_text(json.dumps({"nodes": beats}))
    os.utime(path, (time.time() - 60, time.time() - 60))
    done, running, _ = told(pipeline)
    assert done["heartbeats"] == []
    assert [beat["node"] for beat in running["heartbeats"]] == [f"n{n}" for n in range(10)]
    assert 62 <= running["heartbeats"][2]["seconds"] < 72
    assert status.main([str(pipeline)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "simcse: last heartbeat of n9 1 min 9 s ago, step 3 backward; n8 1 min 8 s ago" in shown
    assert shown.endswith("2 more nodes since")
    path.unlink()


def test_what_has_been_quiet_for_long_has_stopped_and_its_log_says_why(
    pipeline: Path, told: Told, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(pipeline / "simcse", copy)
    (copy / "logs").mkdir()
    log = "step 3\nwatchdog: rank 2 on host n2 was killed\nand more\n"
    (copy / "logs" / "12_0_log.out").write_text(log)
    before = time.time() - 3600
    os.utime(copy / "metrics.jsonl", (before, before))
    (one,) = told(copy)
    assert (one["state"], one["left_s"]) == ("stopped", None)
    assert 3590 < one["last_sign_s"] < 3700
    assert one["trouble"] == "watchdog: rank 2 on host n2 was killed  [12_0_log.out]"
    assert one["total"] == one["done"] == 3  # by its own recipe: the encoder alone is missing


KINDS = ("documents", "mine", "merge", "evaluate", "report", "embed", "questions", "supervised")
ASKED = Resources("x", nodes=1, tasks_per_node=1, gpus_per_node=0, cpus_per_task=1, time_min=5)


def launched_here(folder: Path, kinds: Sequence[str]) -> None:
    logs = folder / "logs"
    stages = [Launched(kind, kind, str(folder / kind), str(logs / kind), None) for kind in kinds]
    write_launched(folder, stages)


def test_a_job_of_this_machine_that_ended_badly_says_why_whatever_its_kind(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "QUIET_S", 0.0)
    launched_here(tmp_path, KINDS)
    assert {one["state"] for one in told(tmp_path)} == {"not begun"}
    ends = (ended.failed, "failed"), (ended.killed, "stopped"), (ended.broken, "failed")
    lines = []
    for job, state in ends:
        first, *others = KINDS
        with pytest.raises(JobFailed):
            run_here(ASKED, job=job, folder=tmp_path / "logs" / first, show=lambda _: None)
        for kind in others:
            shutil.copytree(tmp_path / "logs" / first, tmp_path / "logs" / kind, dirs_exist_ok=True)
        stages = told(tmp_path)
        assert [one["state"] for one in stages] == [state] * len(KINDS)
        assert len({one["trouble"] for one in stages}) == 1
        lines.append(stages[0]["trouble"])
    assert "RunFailed: none of 30 questions is left  [" in lines[0]
    assert lines[1].startswith("step 3 of 20  [")  # nobody reports an error
    assert lines[2].startswith("ZeroDivisionError: an error that nobody foresaw  [")
    # A new launch has not come to them yet, and one of another machine cannot be looked at.
    content = read_json(tmp_path / "launched.json")
    for change in ({"time": "2999-01-01T00:00:00+00:00"}, {"node": "elsewhere"}):
        write_json(tmp_path / "launched.json", {**content, **change})
        assert {one["state"] for one in told(tmp_path)} == {"not begun"}


def test_a_job_of_this_machine_runs_until_its_process_has_ended(tmp_path: Path, told: Told) -> None:
    launched_here(tmp_path, ["merge", "report"])
    executor = LocalExecutor(folder=tmp_path / "logs" / "merge")
    executor.update_parameters(timeout_min=5)
    job = executor.submit(ended.late)
    try:
        while "begins" not in (job.stdout() or ""):
            time.sleep(0.05)
        assert [one["state"] for one in told(tmp_path)] == ["running", "not begun"]
    finally:
        job.cancel()
    with pytest.raises(Exception, match=r"\S"):
        job.result()
    assert told(tmp_path)[0]["state"] in ("failed", "stopped")


def test_a_run_that_was_moved_is_found_where_it_is(tmp_path: Path, told: Told) -> None:
    run_dir = tmp_path / "run"
    outside = tmp_path / "elsewhere"
    launched_here(run_dir, ["merge"])
    content = read_json(run_dir / "launched.json")
    assert content["stages"][0]["output"] == "merge"
    assert content["stages"][0]["logs"] == "logs/merge"
    (run_dir / "merge").mkdir()
    (run_dir / "merge" / "merged.json").write_text("{}")
    run_dir.rename(tmp_path / "moved")
    assert told(tmp_path / "moved")[0]["state"] == "done"
    # What is not in the run's directory, and all that older launches wrote, is absolute.
    write_launched(outside, [Launched("m", "merge", str(tmp_path / "moved/merge"), "/l", None)])
    assert read_json(outside / "launched.json")["stages"][0]["output"] == f"{tmp_path}/moved/merge"
    assert told(outside)[0]["state"] == "done"


def log(folder: Path, name: str, text: str) -> None:
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    (folder / "logs" / name).write_text(text)


@pytest.mark.parametrize(
    ("state", "trouble"),
    [
        ("RUNNING", ""),
        ("PENDING", "error: of this job  [13_0_log.out]"),  # requeued: why it went
        ("FAILED", "error: of this job  [13_0_log.out]"),
        ("RUNNING 3, FAILED 1", "error: of this job  [13_0_log.out]"),
        ("COMPLETED 3, RUNNING 1", ""),
    ],
)
def test_an_error_is_of_the_job_that_is_shown(
    state: str, trouble: str, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(tmp_path, "13_0_log.out", "error: of this job\n")
    log(tmp_path, "9_0_log.out", "error: of an older job\n")
    log(tmp_path, "131_0_log.out", "error: of another job\n")
    logs = str(tmp_path / "logs")
    write_launched(tmp_path, [Launched("mntp", "mntp", str(tmp_path / "m"), logs, 9, ("13",))])
    monkeypatch.setattr(standing, "job_states", lambda jobs: [JobState(jobs[-1], state)])
    (one,) = told(tmp_path)
    assert (one["state"], one["trouble"]) == (state, trouble)
    (tmp_path / "logs" / "13_0_log.out").unlink()
    (one,) = told(tmp_path)
    assert one["trouble"] == ""


def test_a_later_start_by_sbatch_counts_and_not_the_jobs_of_the_launch_before(
    pipeline: Path, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(pipeline / "simcse", run_dir)
    stage = Launched("simcse", "simcse", str(run_dir), str(run_dir / "logs"), 9, ("7",))
    write_launched(run_dir, [stage])
    states = {"7": "FAILED", "8": "RUNNING"}
    monkeypatch.setattr(
        standing, "job_states", lambda jobs: [JobState(job, states[job]) for job in jobs]
    )
    log(run_dir, "7_0_log.out", "error: of the launch\n")
    (one,) = told(run_dir)
    assert (one["state"], one["jobs"], one["restarts"]) == ("FAILED", ["7"], 0)
    (start,) = read_json_lines(run_dir / "starts.jsonl")
    later = {**start, "job": "8", "time": "2999-01-01T00:00:00+00:00"}
    (run_dir / "starts.jsonl").write_text(f"{json.dumps(start)}\n{json.dumps(later)}\n")
    (one,) = told(run_dir)
    assert (one["state"], one["jobs"], one["trouble"]) == ("RUNNING", ["8"], "")
    assert one["restarts"] == 1


def test_a_run_that_loads_its_model_is_a_run(
    shards: Path, tiny_model: Path, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past its preflight, before there is a config.yaml; killed there it has stopped, and what is
    refused there leaves nothing behind."""
    given = [f"data.train={shards}", f"model.base={tiny_model}", "train.steps=1"]
    given = ["tiny_mntp", *given, "train.horizon_steps=9", f"run_dir={tmp_path / 'run'}"]
    seen: list[dict[str, Any]] = []
    build = program.build_trainer

    def look(*arguments: Any, **named: Any) -> Any:
        assert not (tmp_path / "run" / "config.yaml").exists()
        seen.extend(told(tmp_path / "run"))
        shutil.copytree(tmp_path / "run", tmp_path / "killed")
        return build(*arguments, **named)

    def refuse(*_: Any, **__: Any) -> Any:
        raise BadInput("no such luck")

    monkeypatch.setattr(program, "build_trainer", refuse)
    assert train.main(given) == 2
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(program, "build_trainer", look)
    assert train.main(given) == 0
    (one,) = seen
    assert (one["state"], one["reason"], one["kind"]) == ("running", "loads its model", "mntp")
    assert (one["done"], one["total"], one["jobs"]) == (0, 1, [])
    (after,) = told(tmp_path / "run")
    assert (after["state"], after["reason"]) == ("done", "")
    mark = tmp_path / "killed" / "starting.json"
    write_json(mark, {**read_json(mark), "pid": 2**22 + 1})  # as no process has
    (one,) = told(tmp_path / "killed")
    assert (one["run"], one["state"]) == (str(tmp_path / "killed"), "stopped")


def test_an_encoding_counts_units(pipeline: Path, told: Told, shards: Path, tmp_path: Path) -> None:
    model = f"encoder.model={pipeline / 'mntp' / 'encoder'}"
    embed(tmp_path / "enc", model, f"corpus.input={shards}")
    (one,) = told(tmp_path / "enc")
    assert (one["state"], one["kind"], one["unit"]) == ("done", "embed", "units")
    assert one["done"] == one["total"] > 1
    (tmp_path / "enc" / "manifest.json").unlink()
    with Leases(tmp_path / "enc" / LEASE_DIR, lease_s=60) as leases:
        assert leases.take("00001")
        (one,) = told(tmp_path / "enc")
    (beat,) = one["heartbeats"]
    assert beat["node"] == socket.gethostname() and 0 <= beat["seconds"] < 10
    (one,) = told(tmp_path / "enc")
    assert one["state"] == "running"


def test_all_runs_below_a_folder(pipeline: Path, told: Told, tmp_path: Path) -> None:
    (tmp_path / "group").mkdir()
    shutil.copytree(pipeline, tmp_path / "group" / "a")
    shutil.copytree(pipeline / "mntp", tmp_path / "b")
    found = told("--all", tmp_path)
    assert [(Path(one["run"]).name, one["stage"]) for one in found] == [
        ("b", "b"),
        *(("a", stage) for stage in ("mntp", "simcse", "embed")),
    ]


def test_the_table_for_people(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([str(pipeline)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed  # piped: no colours
    rows = [line.split() for line in printed.splitlines() if line.strip()]
    assert rows[0] == [str(pipeline)]
    assert rows[1][:2] == ["stage", "state"]
    (line,) = [row for row in rows if "simcse" in row]
    assert line[-4:-1] != [] and "3/9" in line and line[-1] == "ago"


def test_the_table_on_a_narrow_terminal(pipeline: Path) -> None:
    """80 columns: no number and no state is broken, and no column is empty."""
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    status.show(standing.standings(pipeline, now=time.time()), console=console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    heads = lines[next(n for n, line in enumerate(lines) if "stage" in line)].split()
    assert {"stage", "state", "done"} <= set(heads)
    assert any("3/9 steps" in line and "simcse" in line for line in lines), lines


@pytest.mark.parametrize("width", [80, 60, 40])
def test_reasons_stand_below_a_table_that_they_would_break(width: int) -> None:
    stages = [
        Standing("r", "mntp", "mntp", "RUNNING", jobs=["1", "2", "3"], done=2, total=60),
        Standing("r", "simcse", "simcse", "PENDING", "waits for the job before it", jobs=["4"]),
    ]
    stages[0].unit, stages[0].tokens_per_s, stages[0].loss = "steps", 178.0, 7.1629
    stages[0].left_s, stages[0].last_sign_s, stages[0].restarts = 72.0, 1.0, 1
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    status.show(stages, console=console)
    assert isinstance(console.file, io.StringIO)
    narrow = console.file.getvalue()
    lines = [line for line in narrow.splitlines() if line.strip()]
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[3:5]] == ["mntp", "simcse"], lines  # a line each
    assert "RUNNING" in lines[3] and "2/60 steps" in lines[3] and "PENDING" in lines[4]
    below = " ".join(" ".join(lines[5:]).split())
    reason, _, missed = below.partition(" not shown: ")
    assert reason == "simcse: PENDING: waits for the job before it"
    # A column is in the table or in the line that says which are not.
    hidden = missed.partition(" (a wider terminal")[0].split(", ")
    heads = {"jobs", "tokens/s", "loss", "left", "restarts", "last sign"}
    assert set(hidden) | {head for head in heads if head in lines[1]} == heads, below
    assert hidden != [""] and not [head for head in hidden if head in lines[1]]
    console.width = 200
    status.show(stages, console=console)
    wide = console.file.getvalue().removeprefix(narrow).splitlines()
    assert not any("not shown" in line for line in wide)
    assert any("PENDING (waits for the job before it)" in line for line in wide)


@pytest.mark.parametrize(
    ("state", "running"),
    [
        ("RUNNING", True),
        ("PENDING 1, RUNNING 4", True),
        ("COMPLETED 1, RUNNING 3", True),
        ("PENDING 3, COMPLETED 1", False),
        ("running", True),
        ("done", False),
    ],
)
def test_an_array_runs_while_any_of_it_does(state: str, running: bool) -> None:
    assert standing.is_running(state) == running


def test_a_run_that_cannot_be_read_hides_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a pipeline leaves behind that sbatch has refused, and somebody else's file."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text("foo: 1\n")
    (tmp_path / "b" / "parts").mkdir(parents=True)
    (tmp_path / "b" / "config.yaml").write_text("kind: evaluate\n")
    assert status.main(["--all", str(tmp_path), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["state"] == "not readable" and "kind" in first["reason"]
    assert second["kind"] == "evaluate"


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([str(tmp_path)]) == 2
    assert f"error: {tmp_path}: is not a run: give the run_dir of" in capsys.readouterr().err
    (tmp_path / "parts").mkdir()  # an evaluation that has not come to its table
    assert status.main([str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["kind"] == "evaluate"
    assert status.main(["--all", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert status.main(["--all", str(tmp_path / "absent")]) == 2
    assert "no such directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (59, "59 s"), (310, "5 min 10 s"), (3600, "1 h"), (273_600, "3 d 4 h")],
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_an_array_is_over_when_all_its_tasks_are() -> None:
    assert JobState("1", "COMPLETED 3, FAILED 1").is_over
    assert not JobState("1", "COMPLETED 3, RUNNING 1").is_over


ODD: list[Any] = [None, True, -1, 2**70, 1e300, "x", "2026-01-01", [], {}, [1], {"step": "a"}]


def damaged(value: Any, *, chance: random.Random) -> Any:
    """The value with something else in one place, or without it."""
    if chance.random() < 0.3 or not isinstance(value, dict | list) or not value:
        return chance.choice(ODD)
    copy = json.loads(json.dumps(value))
    place = chance.choice([*copy] if isinstance(copy, dict) else range(len(copy)))
    if isinstance(copy, dict) and chance.random() < 0.2:
        del copy[place]
    else:
        copy[place] = damaged(copy[place], chance=chance)
    return copy


def test_a_damaged_record_is_left_out_or_refused_in_one_line(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(pipeline, folder)
    told = (folder / "launched.json").read_text().replace(str(pipeline), str(folder))
    (folder / "launched.json").write_text(told)
    me = {"time": "2026-01-01T00:00:00+00:00", "job": "local", "node": "n", "pid": 1}
    write_json(folder / "simcse" / "starting.json", {"kind": "simcse", "steps": 9, **me})
    beats = [{"node": "n", "seconds": 1.0, "step": 3, "phase": "backward"}]
    write_json(folder / "simcse" / "heartbeats.json", {"nodes": beats})
    write_json(folder / "embed" / "plan.json", {"bounds": [0, 2, 4]})
    chance = random.Random(0)
    records = [path for path in folder.rglob("*.json*") if "weights" not in path.parts]
    records = [path for path in records if "encoder" not in path.parts]
    assert len(records) >= 7
    for _ in range(200):
        path = chance.choice(records)
        before = path.read_text()
        if path.suffix == ".json":
            path.write_text(json.dumps(damaged(json.loads(before), chance=chance)))
        else:
            lines = before.splitlines()
            number = chance.randrange(len(lines))
            lines[number] = json.dumps(damaged(json.loads(lines[number]), chance=chance))
            path.write_text("\n".join(lines) + "\n")
        code = status.main([str(folder)])
        errors = capsys.readouterr().err
        assert code in (0, 2) and errors.count("\n") <= (code == 2), path.read_text() + errors
        path.write_text(before)

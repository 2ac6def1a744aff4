"""The record of starts: what ran where, and the end of restarts that get nowhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from toolkit import train
from toolkit.base.errors import RunFailed
from toolkit.base.files import append_line, read_json_lines, write_atomic
from toolkit.settings.recipes import load_recipe, to_yaml
from toolkit.training import program
from toolkit.training.recorder import Recorder
from toolkit.training.starts import STARTS_FILE, check_progress
from toolkit.training.steps import newest_step

REQUEUED = {"SLURM_RESTART_COUNT": "2"}


def test_every_start_says_what_ran(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    arguments = [f"data.train={shards}", f"model.base={tiny_model}", "train.save_every_steps=1"]
    for recipe, attention in (
        ("tiny_mntp", "packed, sdpa over groups of rows, dropout 0.0"),
        ("tiny_simcse", "packed, softmax by hand over groups of rows, dropout 0.3"),
    ):
        run_dir = tmp_path / recipe
        for steps in (1, 2):
            given = [recipe, *arguments, f"run_dir={run_dir}", f"train.steps={steps}"]
            assert train.main(given) == 0
        first, second = read_json_lines(run_dir / STARTS_FILE)
        assert (first["step"], second["step"]) == (0, 1)
        assert second["attention"] == attention
        assert second["device"] == "cpu" and not second["automatic"]
        assert second["versions"]["torch"].startswith("2.")


def starts(run_dir: Path, *rows: tuple[bool, int]) -> None:
    lines = [json.dumps({"automatic": automatic, "step": step}) for automatic, step in rows]
    (run_dir / STARTS_FILE).write_text("".join(line + "\n" for line in lines))


def test_three_restarts_without_a_step_end_the_chain(tmp_path: Path) -> None:
    starts(tmp_path, (False, 5), (True, 7), (True, 7), (True, 7))
    with pytest.raises(RunFailed, match="the last 3 restarts made no step beyond 7"):
        check_progress(tmp_path, step=7, environ=REQUEUED)
    check_progress(tmp_path, step=8, environ=REQUEUED)  # the third has made one
    check_progress(tmp_path, step=7, environ={})  # somebody wants it
    check_progress(tmp_path, step=7, environ={"TOOLKIT_CHAIN": "1"})  # and a whole chain of it
    with pytest.raises(RunFailed):
        check_progress(tmp_path, step=7, environ={"TOOLKIT_CHAIN": "2"})


@pytest.mark.parametrize(
    "rows",
    [
        [(True, 7), (True, 7), (False, 7), (True, 7)],  # started by hand in between
        [(True, 6), (True, 7), (True, 7)],  # there was progress
        [],
    ],
)
def test_other_chains_go_on(rows: list[tuple[bool, int]], tmp_path: Path) -> None:
    starts(tmp_path, *rows)
    check_progress(tmp_path, step=7, environ=REQUEUED)


def test_the_door_ends_a_chain_that_gets_nowhere(
    shards: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    starts(tmp_path, *[(True, 0)] * 3)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "4")
    arguments = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}"]
    assert train.main([*arguments, f"run_dir={tmp_path}"]) == 1
    assert "made no step beyond 0" in capsys.readouterr().err


def test_a_run_directory_that_another_recipe_takes_while_we_load_is_not_shared(
    shards: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing was there when we looked; the other job writes its config.yaml before we do."""
    given = [f"data.train={shards}", f"model.base={tiny_model}", f"run_dir={tmp_path / 'run'}"]
    theirs = to_yaml(load_recipe("tiny_mntp", overrides=[*given, "train.lr=5e-4"]))
    prove = program.prove

    def after_the_other(*args: Any, **kwargs: Any) -> None:
        prove(*args, **kwargs)
        write_atomic(tmp_path / "run" / "config.yaml", theirs)

    monkeypatch.setattr(program, "prove", after_the_other)
    assert train.main(["tiny_mntp", *given, "train.steps=1"]) == 2
    assert "belongs to another recipe: train.lr was 0.0005, now" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_text() == theirs
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_of_two_jobs_in_one_run_the_earlier_ends_and_saves_nothing_more(
    shards: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same command given twice: the second one has started after our third step."""
    on_step = Recorder.on_step

    def before_the_other(self: Recorder, done: Any) -> None:
        on_step(self, done)
        if done.step == 3:
            append_line(tmp_path / STARTS_FILE, json.dumps({"step": 0, "process": {"pid": 1}}))

    monkeypatch.setattr(Recorder, "on_step", before_the_other)
    given = [f"data.train={shards}", f"model.base={tiny_model}", f"run_dir={tmp_path}"]
    assert train.main(["tiny_mntp", *given, "train.steps=6", "train.save_every_steps=2"]) == 1
    said = "another job has started in this run directory since; this one ends, unsaved"
    assert f"{tmp_path}: {said}" in capsys.readouterr().err
    assert newest_step(tmp_path) == 2
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.setattr(Recorder, "on_step", on_step)
    assert train.main(["tiny_mntp", *given, "train.steps=6"]) == 0  # and may be started again

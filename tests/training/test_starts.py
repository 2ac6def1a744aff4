"""The record of starts: what ran where, and the end of restarts that get nowhere."""

import json
from pathlib import Path

import pytest

from toolkit import train
from toolkit.files import RunFailed, read_json_lines
from toolkit.training.starts import STARTS_FILE, check_progress

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

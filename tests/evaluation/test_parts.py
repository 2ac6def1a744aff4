"""Parts of an evaluation: made once, by whoever comes, and made again when they are others."""

import threading
from pathlib import Path

import pytest

from toolkit.base.errors import BadInput
from toolkit.evaluation.parts import Part, Scores, main_scores, share
from toolkit.evaluation.task import Outcome

PARTS = [Part("a", task, {"model": "m", "main": "score"}) for task in ("one", "two", "three")]


def test_two_workers_share_and_wait_for_each_other(tmp_path: Path) -> None:
    def worker(first: int) -> list[str]:
        made = []
        scores = Scores(tmp_path)
        for part in share(
            PARTS, scores=scores, lease_s=60.0, first=first, should_stop=lambda: False
        ):
            made.append(part.task)
            scores.keep(part, Outcome({"score": float(first)}))
        return made

    scores = Scores(tmp_path)
    mine = share(PARTS, scores=scores, lease_s=60.0, first=0, should_stop=lambda: False)
    held = next(mine)
    assert held.task == "one"
    others: list[str] = []
    thread = threading.Thread(target=lambda: others.extend(worker(1)), daemon=True)
    thread.start()
    thread.join(timeout=3.0)
    assert thread.is_alive()  # it waits for what we have not kept
    scores.keep(held, Outcome({"score": 7.0}))
    assert next(mine, None) is None
    thread.join(timeout=30.0)
    assert others == ["two", "three"]
    assert [scores.of(part) for part in PARTS] == [{"score": value} for value in (7.0, 1.0, 1.0)]
    assert not (tmp_path / "leases").exists()
    assert main_scores(tmp_path) == ["one score", "three score", "two score"]


def test_a_worker_that_is_told_to_stop_leaves_the_rest(tmp_path: Path) -> None:
    done: list[Part] = []
    scores = Scores(tmp_path)
    for part in share(PARTS, scores=scores, lease_s=60.0, first=2, should_stop=lambda: bool(done)):
        done.append(part)
        scores.keep(part, Outcome({"score": 1.0}))
    assert done == [PARTS[2]]


def test_other_facts_and_half_a_file_are_made_again(tmp_path: Path) -> None:
    part = PARTS[0]
    Scores(tmp_path).keep(part, Outcome({"score": 1.0}))
    assert Scores(tmp_path).of(other_of(part)) is None
    path = part.path(tmp_path)
    path.write_text(path.read_text()[:-9])
    assert Scores(tmp_path).of(part) is None


def other_of(part: Part) -> Part:
    return Part(part.encoder, part.task, {**part.facts, "model": "another"})


def test_an_evaluation_whose_files_another_writes_over_makes_every_part_once(
    tmp_path: Path,
) -> None:
    """Equal names and other facts, at the same time in one directory: as soon as we have kept a
    part, the other evaluation has its own there."""
    scores, made = Scores(tmp_path), list[str]()
    for part in share(PARTS, scores=scores, lease_s=60.0, first=0, should_stop=lambda: False):
        made.append(part.task)
        assert len(made) <= len(PARTS)
        scores.keep(part, Outcome({"score": 1.0}))
        Scores(tmp_path).keep(other_of(part), Outcome({"score": 2.0}))
    assert made == ["one", "two", "three"]
    assert scores.of_all(PARTS) == [(part, {"score": 1.0}) for part in PARTS]
    assert scores.of(other_of(PARTS[0])) == {"score": 2.0}


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a\nb"])
def test_names_that_are_no_file_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="letters, digits"):
        Part("a", name, {}).path(tmp_path)

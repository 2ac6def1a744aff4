"""Parts of an evaluation: made once, by whoever comes, and made again when they are others."""

import threading
from pathlib import Path

import pytest

from toolkit.evaluation.parts import Part, keep, main_scores, scores_of, share
from toolkit.files import BadInput

PARTS = [Part("a", task, {"model": "m", "main": "score"}) for task in ("one", "two", "three")]


def test_two_workers_share_and_wait_for_each_other(tmp_path: Path) -> None:
    def worker(first: int) -> list[str]:
        made = []
        for part in share(
            PARTS, output_dir=tmp_path, lease_s=60.0, first=first, should_stop=lambda: False
        ):
            made.append(part.task)
            keep(part, {"score": float(first)}, output_dir=tmp_path)
        return made

    mine = share(PARTS, output_dir=tmp_path, lease_s=60.0, first=0, should_stop=lambda: False)
    held = next(mine)
    assert held.task == "one"
    others: list[str] = []
    thread = threading.Thread(target=lambda: others.extend(worker(1)), daemon=True)
    thread.start()
    thread.join(timeout=3.0)
    assert thread.is_alive()  # it waits for what we have not kept
    keep(held, {"score": 7.0}, output_dir=tmp_path)
    assert next(mine, None) is None
    thread.join(timeout=30.0)
    assert others == ["two", "three"]
    assert [scores_of(part, output_dir=tmp_path) for part in PARTS] == [
        {"score": value} for value in (7.0, 1.0, 1.0)
    ]
    assert not (tmp_path / "leases").exists()
    assert main_scores(tmp_path) == ["one score", "three score", "two score"]


def test_a_worker_that_is_told_to_stop_leaves_the_rest(tmp_path: Path) -> None:
    done: list[Part] = []
    for part in share(
        PARTS, output_dir=tmp_path, lease_s=60.0, first=2, should_stop=lambda: bool(done)
    ):
        done.append(part)
        keep(part, {"score": 1.0}, output_dir=tmp_path)
    assert done == [PARTS[2]]


def test_other_facts_and_half_a_file_are_made_again(tmp_path: Path) -> None:
    part = PARTS[0]
    keep(part, {"score": 1.0}, output_dir=tmp_path)
    other = Part("a", "one", {"model": "another", "main": "score"})
    assert scores_of(other, output_dir=tmp_path) is None
    path = part.path(tmp_path)
    path.write_text(path.read_text()[:-9])
    assert scores_of(part, output_dir=tmp_path) is None


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a\nb"])
def test_names_that_are_no_file_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="letters, digits"):
        Part("a", name, {}).path(tmp_path)

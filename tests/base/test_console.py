"""What a person watches: a line now and then, and none for what is soon done."""

import threading
import time

import pytest

from toolkit.base.console import Progress, at_work, say_lines

Capture = pytest.CaptureFixture[str]


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def test_lines_are_sparse_and_the_last_is_always_there(capsys: Capture) -> None:
    clock = Clock()
    progress = Progress("work", total=100, unit="rows", now=clock)
    for _ in range(100):
        clock.s += 1
        progress.advance(1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("work: 10/100 rows, 1.0 rows/s, 90 s left")
    assert lines[-1].startswith("work: 100/100 rows")


@pytest.mark.parametrize(("each_s", "num_lines"), [(0.05, 0), (0.5, 5)])
def test_nothing_is_said_of_what_is_soon_done(
    each_s: float, num_lines: int, capsys: Capture
) -> None:
    clock = Clock()
    progress = Progress("work", total=100, unit="rows", least_s=10, now=clock)
    for _ in range(100):
        clock.s += each_s
        progress.advance(1)
    assert len(capsys.readouterr().out.splitlines()) == num_lines


def test_what_cannot_be_counted_is_said_to_go_on(capsys: Capture) -> None:
    """On stderr, again and again, and no more when it is over."""
    seen = ""
    with at_work("hashing \x1b[2J", first_s=0.01, every_s=0.01):
        while seen.count("at work") < 3:
            time.sleep(0.01)
            captured = capsys.readouterr()
            seen += captured.err
            assert captured.out == ""
    assert seen.startswith("hashing \\x1b[2J: at work, 0 s so far\n")
    capsys.readouterr()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("at work")]


@pytest.mark.parametrize("shown", [True, False])
def test_short_work_and_other_ranks_are_silent(shown: bool, capsys: Capture) -> None:
    @at_work("quick", shown=shown, first_s=60 if shown else 0)
    def answer() -> int:
        return 42

    assert [answer(), answer()] == [42, 42]
    with pytest.raises(KeyError), at_work("fails", first_s=60):
        raise KeyError
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_lines_end_where_they_did(capsys: Capture) -> None:
    for text in ("one", "one\n", "one\n\n", ""):
        say_lines(text)
    assert capsys.readouterr().out == "one\none\none\n\n\n"

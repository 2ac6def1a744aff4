"""Queues between threads: order, room, ends and errors, and what was waited for."""

import threading
import time

import pytest

from toolkit.encoding.pipe import Pipe, Stage


def test_things_come_in_order_and_no_more_than_there_is_room_for() -> None:
    pipe, most = Pipe[int](room=2), 0

    def write() -> None:
        nonlocal most
        for number in range(50):
            pipe.put(number)
            most = max(most, len(pipe._things))
        pipe.end()

    with Stage("writer", write):
        assert list(pipe) == list(range(50))
    assert 1 <= most <= 2


def test_either_side_tells_how_long_it_waited() -> None:
    pipe = Pipe[int]()

    def write() -> None:
        time.sleep(0.2)  # the reader waits
        for number in range(3):
            pipe.put(number)
        pipe.end()

    with Stage("writer", write):
        for number in pipe:
            if number == 0:
                time.sleep(0.3)  # the writer waits: there is room for one
    assert 0.15 < pipe.empty_s < 0.3
    assert 0.2 < pipe.full_s < 0.45


def test_the_reader_gets_what_is_there_and_then_the_writers_error() -> None:
    pipe = Pipe[int](room=2)
    pipe.put(1)
    pipe.end(ValueError("broken"))
    read = iter(pipe)
    assert next(read) == 1
    with pytest.raises(ValueError, match="broken"):
        next(read)


@pytest.mark.parametrize("waits_for", ["has_room", "put"])
def test_a_writer_that_waits_is_told_when_nobody_reads_any_more(waits_for: str) -> None:
    pipe, told = Pipe[int](), list[bool]()
    assert pipe.put(1)

    def write() -> None:
        told.append(pipe.has_room() if waits_for == "has_room" else pipe.put(2))

    with Stage("writer", write):
        time.sleep(0.05)
        assert told == []
        assert pipe.close() == [1]
    assert told == [False]
    assert pipe.is_closed
    assert not pipe.put(3)


def test_a_stage_raises_its_error_at_the_end() -> None:
    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Stage("writer", fail):
        pass
    with pytest.raises(KeyError, match="first"), Stage("writer", fail):  # not in place of another
        raise KeyError("first")
    assert not [thread for thread in threading.enumerate() if thread.name == "writer"]

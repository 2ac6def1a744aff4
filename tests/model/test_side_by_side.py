"""Batches side by side on a CPU: the same vectors, in order; errors and threads as before."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from toolkit.encoding.encoder import Encoder
from toolkit.model.side_by_side import MOST_LANES, side_by_side
from toolkit.settings.schema import EncoderSettings


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def ignore(_: object) -> None:
    pass


def lane_of(_: int) -> tuple[str, int]:
    time.sleep(0.05)
    return threading.current_thread().name, torch.get_num_threads()


def threads_of_a_later_thread() -> int:
    found: list[int] = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    return found[0]


@pytest.mark.parametrize(
    ("threads", "items", "lanes", "share"),
    [
        (1, 5, 1, 1),
        (2, 9, 2, 1),
        (6, 1, 1, 6),
        (6, 4, 4, 1),
        (6, 2, 2, 3),
        (19, 99, MOST_LANES, 19 // MOST_LANES),
    ],
)
def test_every_lane_has_its_share_of_the_threads(
    threads: int, items: int, lanes: int, share: int
) -> None:
    torch.set_num_threads(threads)
    found = side_by_side(lane_of, range(items), on_done=ignore)
    assert len({name for name, _ in found}) == lanes
    assert {each for _, each in found} == {share}
    assert torch.get_num_threads() == threads


def test_threads_to_come_begin_as_before() -> None:
    torch.set_num_threads(3)
    side_by_side(lane_of, range(6), on_done=ignore)
    assert threads_of_a_later_thread() == 3


def test_who_comes_meanwhile_waits_for_its_turn() -> None:
    torch.set_num_threads(6)
    shares: list[int] = []

    def call() -> None:
        found = side_by_side(lane_of, range(2), on_done=ignore)
        shares.extend(share for _, share in found)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
        time.sleep(0.02)
    for caller in callers:
        caller.join()
    assert shares == [3] * 6
    assert threads_of_a_later_thread() == 6


def test_results_come_in_the_order_of_the_items() -> None:
    torch.set_num_threads(4)

    def slow_first(item: int) -> int:
        time.sleep(0.1 if item == 0 else 0.0)
        return item

    done: list[int] = []
    found = side_by_side(slow_first, range(20), on_done=done.append)
    assert found == done == list(range(20))
    assert side_by_side(slow_first, [], on_done=done.append) == []


def test_an_error_is_raised_and_what_has_not_begun_is_left() -> None:
    torch.set_num_threads(2)
    begun = []

    def fail(item: int) -> int:
        begun.append(item)
        time.sleep(0.02)
        if item == 2:
            raise MemoryError("no room")
        return item

    with pytest.raises(MemoryError, match="no room"):
        side_by_side(fail, range(1000), on_done=ignore)
    assert len(begun) < 20
    assert torch.get_num_threads() == 2
    assert len(side_by_side(lane_of, range(2), on_done=ignore)) == 2


def test_an_error_of_who_is_told_leaves_no_turn_taken() -> None:
    torch.set_num_threads(2)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side(lane_of, range(9), on_done=interrupt)
    assert len(side_by_side(lane_of, range(3), on_done=ignore)) == 3


def test_one_at_a_time_has_all_threads_and_no_lane() -> None:
    torch.set_num_threads(4)
    found = side_by_side(lane_of, range(3), on_done=ignore, most=1)
    assert found == [(threading.current_thread().name, 4)] * 3


def test_vectors_are_those_of_one_thread(tiny_model: Path) -> None:
    settings = EncoderSettings(model=str(tiny_model), max_tokens=64, batch_tokens=64)
    encoder = Encoder(settings, device=torch.device("cpu"))
    texts = [f"Canal {n} carries barges. " * (1 + n % 7) for n in range(60)] + [""]
    rows = []
    torch.set_num_threads(1)
    alone_ND = encoder.vectors_of(texts, on_rows=lambda count, _: rows.append(count))
    torch.set_num_threads(3)
    beside_ND = encoder.vectors_of(texts, on_rows=lambda count, _: rows.append(count))
    np.testing.assert_array_equal(beside_ND, alone_ND)
    half = len(rows) // 2
    assert rows[:half] == rows[half:]
    assert half > 3
    assert sum(rows[half:]) == len(texts)

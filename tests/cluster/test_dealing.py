"""The book of who has which piece, without anybody who works."""

import heapq
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.cluster.dealing import MAX_FAILURES, Book


def test_pieces_are_dealt_in_order_and_once() -> None:
    book = Book(range(3))
    assert [book.deal(worker) for worker in (1, 2, 1, 2)] == [0, 1, 2, None]
    assert not book.is_over
    for piece in range(3):
        book.finish(piece)
    assert book.is_over
    assert book.num_left == 0


def test_what_comes_back_is_dealt_first() -> None:
    book = Book(range(4))
    assert [book.deal(1), book.deal(2)] == [0, 1]
    book.give_back(2, 0)  # it is not theirs
    book.give_back(1, 0)
    assert [book.deal(2), book.deal(2), book.deal(2)] == [0, 2, 3]
    assert sorted(book.lose(2)) == [0, 1, 2, 3]
    assert book.num_left == 4


def test_a_lost_worker_may_have_done_it_after_all() -> None:
    book = Book([7, 8])
    assert book.deal(1) == 7
    assert book.lose(1) == [7]
    book.finish(7)  # it was only slow
    assert [book.deal(2), book.deal(2)] == [8, None]
    assert book.lose(2) == [8]
    assert book.deal(3) == 8
    book.finish(8)  # by 2
    book.finish(8)  # by 3
    assert book.is_over


def test_a_piece_that_fails_everywhere_is_given_up() -> None:
    book = Book([5, 6])
    for worker in range(MAX_FAILURES):
        assert book.deal(worker) == 5
        book.fail(worker, 5)
        book.fail(worker, 5)  # the second time says nothing new
    assert book.given_up == [5]
    assert book.deal(9) == 6
    book.finish(6)
    assert book.is_over
    assert book.num_left == 1


def test_a_piece_can_be_added_once() -> None:
    book = Book([1])
    book.add([2, 1])
    assert [book.deal(0), book.deal(0), book.deal(0)] == [2, 1, None]
    book.add([2])
    assert book.deal(0) is None


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_uneven_workers_are_done_within_a_twentieth_of_the_ideal(seed: int) -> None:
    """Simulated: speeds from 0.5 to 2, a hundred workers that are lost on the way and are missed
    after two units' time, units whose work differs by a tenth. The ideal is all work at all speed,
    each worker's for as long as it was there."""
    rng = random.Random(seed)
    num_workers, num_pieces = 1000, 100_000
    speed = [rng.uniform(0.5, 2) for _ in range(num_workers)]
    work = [rng.uniform(0.9, 1.1) for _ in range(num_pieces)]
    dies = {worker: rng.uniform(0, 80) for worker in rng.sample(range(num_workers), 100)}
    book = Book(range(num_pieces))
    events: list[tuple[float, int, int]] = []  # time, worker, what it has done (-1: it is missed)
    idle, now = list(range(num_workers)), 0.0
    while not book.is_over:
        waiting = []
        for worker in idle:
            if (piece := book.deal(worker)) is None:
                waiting.append(worker)
            elif (done := now + work[piece] / speed[worker]) < dies.get(worker, math.inf):
                heapq.heappush(events, (done, worker, piece))
            else:
                heapq.heappush(events, (dies[worker] + 2, worker, -1))
        idle = waiting
        now, worker, piece = heapq.heappop(events)
        if piece < 0:
            book.lose(worker)
        else:
            book.finish(piece)
            idle.append(worker)
    capacity = sum(s * min(dies.get(worker, now), now) for worker, s in enumerate(speed))
    assert sum(work) / capacity >= 0.95


@given(seed=st.integers(0, 10_000), num_workers=st.integers(1, 6))
def test_whatever_happens_every_piece_is_done(seed: int, num_workers: int) -> None:
    """Workers that finish, give back, fail now and then, are lost and come back."""
    rng, book, done = random.Random(seed), Book(range(20)), Counter[int]()
    has: dict[int, list[int]] = {worker: [] for worker in range(num_workers)}
    while not book.is_over:
        worker = rng.randrange(num_workers)
        if (piece := book.deal(worker)) is not None:
            has[worker].append(piece)
        if has[worker] and (what := rng.random()) < 0.9:
            piece = has[worker].pop()
            if what < 0.7:
                book.finish(piece)
                done[piece] += 1
            elif what < 0.85:
                book.give_back(worker, piece)
            else:
                book.fail(worker, piece)
        else:
            book.lose(worker)  # and it does not know
    assert set(done) | set(book.given_up) == set(range(20))

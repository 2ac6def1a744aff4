"""The book of who has which piece, without anybody who works."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.simulate_dealing import Crew, crew_of, fixed_share_s, makespan_s
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


def test_a_thousand_uneven_workers_are_done_within_a_twentieth_of_the_ideal() -> None:
    """Simulated (see there): uneven, a tenth lost, a tenth late, a hundred pieces each."""
    crew = crew_of(num_workers=1000, units=100, seed=11, troubles=True)
    seconds, dealt_again = makespan_s(crew)
    assert 1 <= seconds / crew.ideal_s() <= 1.05
    assert dealt_again == 200, "two of each that was lost"


def test_the_simulation_counts_as_one_does_by_hand() -> None:
    """Six pieces; a worker of speed 1, and one of speed 2 that dies at 1.75, missed at 3.75."""
    crew = Crew([1.0, 2.0], [0.0, 0.0], [math.inf, 1.75], work=[1.0] * 6)
    # The second does three by 1.5 and dies over the last one.
    assert makespan_s(crew, ahead=0) == (4.75, 1)
    # The first, who is at its second then, has taken the last one before.
    assert makespan_s(crew, ahead=1) == (3.0, 0)
    assert crew.ideal_s() == pytest.approx(2.5)
    assert fixed_share_s(Crew([1.0, 2.0], [0.0] * 2, [math.inf] * 2, work=[1.0] * 6)) == 3.0


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

"""The book of who has which piece, without anybody who works."""

import random
from collections import Counter

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

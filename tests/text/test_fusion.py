"""Reciprocal rank fusion beside the sum of the paper, worked out by hand."""

import numpy as np
import pytest

from toolkit.text.fusion import fused


def ranking(**scores: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows named r0, r1, ... (or none) and their scores."""
    rows = np.array([int(name[1:].replace("_", "-")) for name in scores], np.int64)
    return rows, np.array(list(scores.values()))


def test_a_row_gets_the_sum_of_its_reciprocal_ranks() -> None:
    rows, scores = fused([ranking(r7=0.9, r3=0.5, r5=0.1), ranking(r4=12.0, r7=8.0, r5=7.0)])
    assert rows.tolist() == [7, 5, 4, 3]
    expected = [1 / 61 + 1 / 62, 1 / 63 + 1 / 63, 1 / 61, 1 / 62]
    assert scores.tolist() == pytest.approx(expected)


def test_equal_scores_share_the_mean_of_their_ranks_and_equal_sums_the_order_of_rows() -> None:
    rows, scores = fused([ranking(r9=0.5, r2=0.5, r1=0.9, r0=0.5), ranking()])
    assert rows.tolist() == [1, 0, 2, 9]
    assert scores.tolist() == pytest.approx([1 / 61, 1 / 63, 1 / 63, 1 / 63])


def test_the_order_in_which_rows_come_says_nothing() -> None:
    rng = np.random.default_rng(3)
    lists = [(rng.permutation(50), rng.integers(0, 9, 50).astype(float)) for _ in range(2)]
    orders = [rng.permutation(50) for _ in lists]
    mixed = [(rows[o], scores[o]) for (rows, scores), o in zip(lists, orders, strict=True)]
    for one, other in zip(fused(lists), fused(mixed), strict=True):
        assert one.tolist() == other.tolist()


def test_a_row_below_zero_is_none() -> None:
    rows, scores = fused([ranking(r1=0.9, r_1=0.0), ranking(r_1=0.0)])
    assert (rows.tolist(), scores.tolist()) == ([1], [1 / 61])
    assert [found.tolist() for found in fused([ranking(r_1=0.0), ranking()])] == [[], []]

"""How a rank's rows become micro-batches."""

from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.text.packing import best_fit
from toolkit.training.loop import balanced_parts


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 128), min_size=1, max_size=60), st.integers(1, 300), st.data())
def test_every_row_is_in_one_part_and_parts_are_balanced(
    tokens: list[int], budget: int, data: st.DataObject
) -> None:
    """Also where another rank needs more micro-batches than we do."""
    wanted = len(best_fit(tokens, room=max(budget, *tokens)))
    num_parts = data.draw(st.integers(wanted, len(tokens)))
    parts = balanced_parts(tokens, num_parts=num_parts)
    assert len(parts) == num_parts
    assert all(parts)
    assert sorted(row for part in parts for row in part) == list(range(len(tokens)))
    # Of any two parts, the fuller one without its last row is no fuller than the other.
    loads = [sum(tokens[row] for row in part) for part in parts]
    assert max(loads) - min(loads) <= max(tokens)


def test_the_largest_row_comes_first() -> None:
    """Placed last, it would stand beside others: 7 tokens here and 3 there."""
    parts = balanced_parts([1, 1, 5, 1, 1, 1], num_parts=2)
    assert sorted(map(sorted, parts)) == [[0, 1, 3, 4, 5], [2]]

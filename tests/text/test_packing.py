"""Packing: nothing lost, nothing too long, hardly any room wasted."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.text.packing import best_fit, cut_document, pack_documents


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 32), max_size=80))
def test_best_fit_places_each_piece_once_within_the_room(lengths: list[int]) -> None:
    blocks = best_fit(lengths, room=32)
    assert sorted(piece for block in blocks for piece in block) == list(range(len(lengths)))
    assert all(sum(lengths[piece] for piece in block) <= 32 for block in blocks)
    # No two blocks could be one: otherwise the later one's first piece would have fitted.
    fill = sorted(sum(lengths[piece] for piece in block) for block in blocks)
    assert len(fill) < 2 or fill[0] + fill[1] > 32


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_documents_become_blocks_token_for_token(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 90), min_size=1, max_size=30))
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    cuts = [
        np.array(sorted(data.draw(st.sets(st.integers(0, max(0, length))))), dtype=np.int64)
        for length in lengths
    ]
    wrap = data.draw(st.integers(0, 2))
    packing = pack_documents(offsets, cuts=cuts, room=24, wrap=wrap)
    spans = zip(packing.starts.tolist(), packing.lengths.tolist(), strict=True)
    places = [place for start, length in spans for place in range(start, start + length)]
    assert sorted(places) == list(range(sum(lengths)))
    ends = packing.block_offsets.tolist()
    assert ends[0] == 0 and ends[-1] == len(packing.starts)
    for first, last in itertools.pairwise(ends):
        assert 0 < packing.lengths[first:last].sum() + wrap * (last - first) <= 24
    # A piece never reaches into the next document.
    owners = np.searchsorted(offsets, packing.starts, side="right")
    last_owners = np.searchsorted(offsets, packing.starts + packing.lengths - 1, side="right")
    assert (owners == last_owners).all()


def test_a_document_that_fits_is_whole_and_a_long_one_is_cut_where_it_hurts_least() -> None:
    none = np.array([], dtype=np.int64)
    assert cut_document(10, places=np.array([3, 6]), room=10) == [(0, 10)]
    assert cut_document(25, places=none, room=10) == [(0, 10), (10, 10), (20, 5)]
    assert cut_document(25, places=np.array([4, 8, 17]), room=10) == [(0, 8), (8, 9), (17, 8)]
    # A piece of four of ten would waste more than the cut saves.
    assert cut_document(15, places=np.array([4]), room=10) == [(0, 10), (10, 5)]
    assert cut_document(0, places=none, room=10) == []


def test_real_lengths_fill_blocks_almost_wholly() -> None:
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(5.5, 1.2, size=3000).astype(int) + 1, 511).tolist()
    blocks = best_fit(lengths, room=511)
    assert sum(lengths) / (511 * len(blocks)) == pytest.approx(1.0, abs=0.01)

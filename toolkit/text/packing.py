"""How documents fill blocks of a fixed number of tokens. Knows lengths only.

Best-fit packing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"): a document that
fits a block is never cut, a longer one is cut as seldom as its length demands, and every piece goes
into the fullest block that still has room.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Packing:
    """Pieces, block after block: block b holds pieces block_offsets[b] .. block_offsets[b + 1].

    `starts` are places in the flat token sequence, `lengths` are numbers of tokens.
    """

    starts: Ints
    lengths: Ints
    block_offsets: Ints


def pack_documents(
    document_offsets: Ints, *, cuts: Sequence[Ints], room: int, wrap: int
) -> Packing:
    """Pack documents into blocks of at most `room` tokens; every token is in one block.

    Each piece takes `wrap` tokens more, for its begin token and the like. `document_offsets` has
    one entry more than there are documents; `cuts` are, for each document, the ascending places in
    it (in tokens from its start) where a cut hurts least.
    """
    starts: list[int] = []
    lengths: list[int] = []
    for number, places in enumerate(cuts):
        first, end = int(document_offsets[number]), int(document_offsets[number + 1])
        for start, length in cut_document(end - first, places=places, room=room - wrap):
            starts.append(first + start)
            lengths.append(length)
    blocks = best_fit([length + wrap for length in lengths], room=room)
    order = np.array([piece for block in blocks for piece in block], dtype=np.int64)
    return Packing(
        starts=np.array(starts, dtype=np.int64)[order],
        lengths=np.array(lengths, dtype=np.int64)[order],
        block_offsets=np.cumsum([0, *map(len, blocks)], dtype=np.int64),
    )


def cut_document(length: int, *, places: Ints, room: int) -> list[tuple[int, int]]:
    """(start, length) of the pieces of one document, each at most `room` long, none empty.

    A cut falls on the last of `places` that leaves a piece at least half full, else at `room`.
    """
    pieces: list[tuple[int, int]] = []
    start = 0
    while length - start > room:
        before = int(np.searchsorted(places, start + room, side="right"))
        place = int(places[before - 1]) if before else 0
        end = place if place - start > room // 2 else start + room
        pieces.append((start, end - start))
        start = end
    if length > start:
        pieces.append((start, length - start))
    return pieces


def best_fit(lengths: Sequence[int], *, room: int) -> list[list[int]]:
    """Which pieces go into which block: longest first, each into the fullest block that has room.

    Deterministic: of equal pieces the first goes first, of equal blocks the newest is filled.
    """
    blocks: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # tokens left -> blocks
    rooms: list[int] = []  # the keys of `with_room`, ascending
    for piece in sorted(range(len(lengths)), key=lambda piece: -lengths[piece]):
        length = lengths[piece]
        place = bisect_left(rooms, length)
        if place == len(rooms):
            block, left = len(blocks), room
            blocks.append([])
        else:
            left = rooms[place]
            block = with_room[left].pop()
            if not with_room[left]:
                del with_room[left], rooms[place]
        blocks[block].append(piece)
        left -= length
        if left:
            if left not in with_room:
                insort(rooms, left)
            with_room.setdefault(left, []).append(block)
    return blocks

"""How documents fill blocks of a fixed number of tokens. Knows lengths only.

Best-fit packing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling") with cuts at
sentence ends. A block takes whole documents, the longest first. The room that is left takes the
document that fills it best, or the first whole sentences of a document; the rest of that document
is then packed like any other.

If documents were never cut, 38 % of the room in blocks would stay empty when each document is a
little longer than half a block. If they were cut wherever a block ends, the sentence there would be
lost.
"""

import heapq
import itertools
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

LEAST_TOKENS = 16  # the shortest piece that a cut may leave; in short blocks an eighth of a block
TOLERANCE = 100  # a block counts as full when less than 1 in 100 of its tokens is empty
SECTION = 4  # blocks per section; a document longer than two sections is packed by sections
CANDIDATES = 32  # lengths that are compared for a room; more would fill it no better

Ints = NDArray[np.int64]
Span = tuple[int, int]
_NOTHING: Ints = np.array([], dtype=np.int64)


@dataclass(frozen=True)
class Packing:
    """Pieces, block after block: block b holds pieces block_offsets[b] .. block_offsets[b + 1].

    `starts` are places in the flat token sequence, `lengths` are numbers of tokens.
    """

    starts: Ints
    lengths: Ints
    block_offsets: Ints


def pack_documents(
    document_offsets: Ints,
    *,
    cuts: Sequence[Ints],
    room: int,
    wrap: int,
    without: Ints = _NOTHING,
) -> Packing:
    """Pack documents into blocks of at most `room` tokens. Every token is in exactly one block,
    except for the documents `without`, which are left out.

    Each piece needs `wrap` tokens more, for its begin token and the like. `document_offsets` has
    one entry more than there are documents. `cuts` gives for each document the ascending places (in
    tokens from its start) where a cut does least harm. A document is cut elsewhere only to fill a
    block that would stay half empty or, if the document has no such place, a quarter empty. The
    result depends on the arguments only; the time is O(n log n) for n documents of a given length.
    """
    if room <= wrap:
        raise ValueError(f"room={room} holds no piece: each takes {wrap} tokens around it")
    pool = _Pool(room=room, wrap=wrap)
    left_out = frozenset(without.tolist())
    bounds = itertools.pairwise(document_offsets.tolist())
    for number, ((first, end), places) in enumerate(zip(bounds, cuts, strict=True)):
        if end > first and number not in left_out:
            pool.add_document(first, end, places=places)
    blocks: list[list[Span]] = []
    while pool:
        blocks.append(pool.fill())
    spans = np.array(list(itertools.chain(*blocks)), dtype=np.int64).reshape(-1, 2)
    return Packing(
        starts=spans[:, 0].copy(),
        lengths=spans[:, 1].copy(),
        block_offsets=np.cumsum([0, *map(len, blocks)], dtype=np.int64),
    )


@dataclass(frozen=True)
class _Piece:
    """A document, or the rest of one, as a span of the flat token sequence. `places` are the cuts
    of the whole document there; `is_plain`: it has none; `goes_on`: the beginning of the document
    was taken already."""

    start: int
    end: int
    places: list[int]
    is_plain: bool
    goes_on: bool

    @property
    def length(self) -> int:
        return self.end - self.start


def _sections(start: int, end: int, places: Sequence[int], *, size: int) -> Iterator[Span]:
    """(start, end) of the sections of a document. Pieces are taken from their beginning, so more
    sections give more pieces to choose from, which fills rooms better."""
    while end - start > 2 * size:
        last = bisect_right(places, start + size) - 1
        half_full = last >= 0 and places[last] > start + size // 2
        until = places[last] if half_full else start + size
        yield start, until
        start = until
    yield start, end


class _Shelf:
    """Pieces sorted by the lengths at which they can be taken. It finds the greatest length up to a
    limit at once.

    Among pieces that can be taken at one length, the longest piece comes first, so that many pieces
    are left to choose from until the end. A piece that is no longer in `pieces` is dropped when it
    comes up.
    """

    def __init__(self, pieces: dict[int, _Piece]) -> None:
        self._pieces = pieces
        self._heaps: dict[int, list[tuple[int, int]]] = {}
        # A set of lengths as one number: bit l is set if there may be a piece for length l, and the
        # greatest length up to a limit is the highest bit below it.
        self._lengths = 0

    def put(self, number: int, *, length: int) -> None:
        order = (-self._pieces[number].length, number)
        heapq.heappush(self._heaps.setdefault(length, []), order)
        self._lengths |= 1 << length

    def longest(self, at_most: int) -> tuple[int, int] | None:
        """The greatest length up to `at_most` at which a piece can be taken, and that piece."""
        while at_most > 0:
            length = (self._lengths & ((2 << at_most) - 1)).bit_length() - 1
            if length <= 0:
                return None
            number = _top(self._heaps[length], among=self._pieces)
            if number is not None:
                return length, number
            self._lengths ^= 1 << length
        return None

    def longest_first(self, at_most: int) -> Iterator[tuple[int, int]]:
        """(length, piece) for each length, from `at_most` down."""
        while taken := self.longest(at_most):
            yield taken
            at_most = taken[0] - 1


def _top(heap: list[tuple[int, int]], *, among: dict[int, _Piece]) -> int | None:
    """The first piece of a heap that is still among the pieces; drops those before it."""
    while heap and heap[0][1] not in among:
        heapq.heappop(heap)
    return heap[0][1] if heap else None


class _Pool:
    """The pieces that are in no block yet."""

    def __init__(self, *, room: int, wrap: int) -> None:
        self._room, self._wrap, self._most = room, wrap, room - wrap
        self._enough = room // TOLERANCE
        self._least = max(1, min(LEAST_TOKENS, room // 8, self._most // 2))
        self._pieces: dict[int, _Piece] = {}
        self._numbers = itertools.count()
        self._whole = _Shelf(self._pieces)
        # Two shelves for pieces that can be cut. A piece longer than a block must be cut anyway; a
        # shorter one had better stay whole, so its shelf comes last.
        self._long_cut, self._short_cut = _Shelf(self._pieces), _Shelf(self._pieces)
        self._shelves = self._whole, self._long_cut, self._short_cut
        # Heaps by length: of all pieces, and of those whose document has no place for a cut.
        self._by_length: list[tuple[int, int]] = []
        self._plain_by_length: list[tuple[int, int]] = []

    def add_document(self, first: int, end: int, *, places: Ints) -> None:
        """Add the document from `first` to `end`; `places` count from `first`."""
        inside = (places[(places > 0) & (places < end - first)] + first).tolist()
        for start, until in _sections(first, end, inside, size=SECTION * self._most):
            self._add(_Piece(start, until, inside, is_plain=not inside, goes_on=start > first))

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def fill(self) -> list[Span]:
        """Take the pieces of one block, at least one; returns their starts and lengths."""
        lengths: dict[int, int] = {}  # by start
        starts: dict[int, int] = {}  # by end
        left = self._room
        while left > self._wrap:
            choice = self._choose(left - self._wrap, empty=not lengths)
            if choice is None and left > self._room // 4:
                choice = self._cut_anywhere(left - self._wrap, left=left)
            if choice is None:
                break
            length, number = choice
            piece = self._take(number, length=length)
            start = piece.start
            left -= length
            if piece.goes_on and start in starts:  # the piece before it is in this block: join them
                end, start = start + length, starts.pop(start)
                length = end - start
            else:
                left -= self._wrap
            lengths[start], starts[start + length] = length, start
        return list(lengths.items())

    def _add(self, piece: _Piece) -> None:
        number = next(self._numbers)
        self._pieces[number] = piece
        heapq.heappush(self._by_length, (-piece.length, number))
        if piece.is_plain:
            heapq.heappush(self._plain_by_length, (-piece.length, number))
        shelf = self._long_cut
        if piece.length <= self._most:
            self._whole.put(number, length=piece.length)
            shelf = self._short_cut
        last = min(piece.start + self._most, piece.end - self._least)
        first = bisect_left(piece.places, piece.start + self._least)
        for place in piece.places[first : bisect_right(piece.places, last)]:
            shelf.put(number, length=place - piece.start)

    def _long_left(self) -> bool:
        longest = _top(self._by_length, among=self._pieces)
        return longest is not None and self._pieces[longest].length > self._most

    def _take(self, number: int, *, length: int) -> _Piece:
        piece = self._pieces.pop(number)
        if length < piece.length:
            self._add(replace(piece, start=piece.start + length, goes_on=True))
        return piece

    def _choose(self, free: int, *, empty: bool) -> tuple[int, int] | None:
        """The length and the piece that leave the least of `free`, counting the best piece that
        could follow."""
        whole = self._whole.longest(free)
        if whole and (self._waste_after(free - whole[0]) == 0 or (empty and not self._long_left())):
            return whole
        best: tuple[int, int] | None = None
        least_waste = free + 1
        for shelf in self._shelves:
            for length, number in itertools.islice(shelf.longest_first(free), CANDIDATES):
                waste = self._waste_after(free - length)
                if waste < least_waste:
                    least_waste, best = waste, (length, number)
                if waste == 0:
                    return best
        return best

    def _waste_after(self, left: int) -> int:
        """How many of the `left` tokens stay empty after the best piece for them; 0 if that is less
        than the tolerance."""
        least = left
        if left > self._enough:
            for shelf in self._shelves:
                best = shelf.longest(left - self._wrap)
                if best is not None:
                    least = min(least, left - self._wrap - best[0])
        return least if least > self._enough else 0

    def _cut_anywhere(self, free: int, *, left: int) -> tuple[int, int] | None:
        """The length and the piece for a cut between any two tokens: as much as fits of the longest
        piece for which such a cut is allowed; None if there is none."""
        longest = self._by_length if left > self._room // 2 else self._plain_by_length
        number = _top(longest, among=self._pieces)
        if number is None or min(free, self._pieces[number].length // 2) < self._least:
            return None
        return min(free, self._pieces[number].length - self._least), number


def best_fit(lengths: Sequence[int], *, room: int) -> list[list[int]]:
    """Which pieces go into which block: the longest first, each into the fullest block with room.

    Deterministic: among equal pieces the first comes first; among equal blocks the newest is used.
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

"""How documents fill blocks of a fixed number of tokens. Knows lengths only.

Best-fit packing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling") with cuts at
sentence ends: whole documents, the longest first, and into the room that is left the document, or
the whole sentences from the beginning of one, that fill it. Their rest is packed as a document is.

Documents that are never cut would leave 38 % of the blocks empty when each is a little longer than
half a block; cut wherever a block ends, they would lose the sentence that stands there.
"""

import heapq
import itertools
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

LEAST_TOKENS = 16  # a cut leaves no shorter piece on either side; in short blocks, an eighth of one
TOLERANCE = 100  # a block is full when less than one in so many of its tokens is left
SECTION = 4  # a document of more than two sections of so many blocks is packed section by section
CANDIDATES = 32  # so many lengths are compared for a room; more fill it no better

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
    """Pack documents into blocks of at most `room` tokens; every token is in one block, but for
    those of the documents `without`.

    Each piece takes `wrap` tokens more, for its begin token and the like. `document_offsets` has
    one entry more than there are documents; `cuts` are, for each document, the ascending places in
    it (in tokens from its start) where a cut hurts least. Elsewhere a document is cut only to fill
    a block that would stay half empty, or, where it has no such place, a quarter empty. The result
    is a function of the arguments; the time is O(n log n) for n documents of any given length.
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
    """A document, or what is left of it, in the flat token sequence. `places` are its document's
    cuts there; `is_plain` says that there were none, `goes_on` that something stands before it."""

    start: int
    end: int
    places: list[int]
    is_plain: bool
    goes_on: bool

    @property
    def length(self) -> int:
        return self.end - self.start


def _sections(start: int, end: int, places: Sequence[int], *, size: int) -> Iterator[Span]:
    """(start, end) of the sections of a document: a room is the better filled, the more beginnings
    of pieces there are to choose from."""
    while end - start > 2 * size:
        last = bisect_right(places, start + size) - 1
        half_full = last >= 0 and places[last] > start + size // 2
        until = places[last] if half_full else start + size
        yield start, until
        start = until
    yield start, end


class _Shelf:
    """Pieces by a length at which each can be taken: the longest at most so long is found at once.

    Of one length the longest piece is taken first, so that many are left to choose from until the
    end. A piece that is no longer in `pieces` is forgotten when it is met.
    """

    def __init__(self, pieces: dict[int, _Piece]) -> None:
        self._pieces = pieces
        self._heaps: dict[int, list[tuple[int, int]]] = {}
        self._lengths = 0  # bit l is set where a piece of length l may be

    def put(self, number: int, *, length: int) -> None:
        order = (-self._pieces[number].length, number)
        heapq.heappush(self._heaps.setdefault(length, []), order)
        self._lengths |= 1 << length

    def longest(self, at_most: int) -> tuple[int, int] | None:
        """The greatest length at most so long at which a piece can be taken, and that piece."""
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
        """(length, piece) for each length, from the longest down."""
        while found := self.longest(at_most):
            yield found
            at_most = found[0] - 1


def _top(heap: list[tuple[int, int]], *, among: dict[int, _Piece]) -> int | None:
    """The first piece of a heap that is still there."""
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
        # A long piece is cut anyway; a short one is better left whole.
        self._long_cut, self._short_cut = _Shelf(self._pieces), _Shelf(self._pieces)
        self._shelves = self._whole, self._long_cut, self._short_cut
        # Heaps of all pieces, and of those of documents in which no sentence ends.
        self._by_length: list[tuple[int, int]] = []
        self._plain_by_length: list[tuple[int, int]] = []

    def add_document(self, first: int, end: int, *, places: Ints) -> None:
        """Add what stands from `first` to `end`; `places` count from its beginning."""
        inside = (places[(places > 0) & (places < end - first)] + first).tolist()
        for start, until in _sections(first, end, inside, size=SECTION * self._most):
            self._add(_Piece(start, until, inside, is_plain=not inside, goes_on=start > first))

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def fill(self) -> list[Span]:
        """Take the pieces of one block, at least one: their starts and lengths."""
        lengths: dict[int, int] = {}  # by start
        starts: dict[int, int] = {}  # by end
        left = self._room
        while left > self._wrap:
            found = self._choose(left - self._wrap, empty=not lengths)
            if found is None and left > self._room // 4:
                found = self._cut_anywhere(left - self._wrap, left=left)
            if found is None:
                break
            length, number = found
            piece = self._take(number, length=length)
            start = piece.start
            left -= length
            if piece.goes_on and start in starts:  # after its beginning: they are one
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
        """The length and the piece that leave least of `free`, once another one follows."""
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
        """How much of `left` the best piece for it would leave; 0 when it is hardly anything."""
        least = left
        if left > self._enough:
            for shelf in self._shelves:
                found = shelf.longest(left - self._wrap)
                if found is not None:
                    least = min(least, left - self._wrap - found[0])
        return least if least > self._enough else 0

    def _cut_anywhere(self, free: int, *, left: int) -> tuple[int, int] | None:
        """As much as fits of the longest piece that may be cut between any tokens, if one may."""
        longest = self._by_length if left > self._room // 2 else self._plain_by_length
        number = _top(longest, among=self._pieces)
        if number is None or min(free, self._pieces[number].length // 2) < self._least:
            return None
        return min(free, self._pieces[number].length - self._least), number


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

"""The book of a dealer of work: which worker has which piece.

Knows pieces and workers as numbers. Refuses to know the work, and how messages travel (`mpi`). A
worker that asks is dealt the next piece, so a slow worker gets fewer.
"""

from collections import Counter, deque
from collections.abc import Iterable

# A piece that failed this often is bad itself; dealing it on would cost more workers.
MAX_FAILURES = 3


class Book:
    """Pieces that are free, dealt, or done. A piece that comes back is dealt before all others."""

    def __init__(self, pieces: Iterable[int]) -> None:
        self._free = deque(pieces)
        self._dealt: dict[int, int] = {}
        self._failures: Counter[int] = Counter()
        self.given_up: list[int] = []

    @property
    def is_over(self) -> bool:
        """Whether no piece is free or dealt, so that nothing can be dealt any more."""
        return not (self._free or self._dealt)

    @property
    def num_left(self) -> int:
        """The number of pieces that are not done."""
        return len(self._free) + len(self._dealt) + len(self.given_up)

    def deal(self, worker: int) -> int | None:
        """The next piece for a worker; None if none is free, which may change until `is_over`."""
        if not self._free:
            return None
        piece = self._free.popleft()
        self._dealt[piece] = worker
        return piece

    def finish(self, piece: int) -> None:
        """Note that a piece is done, whoever did it: a worker that was taken for lost may have
        finished its piece after all."""
        if self._dealt.pop(piece, None) is None and piece in self._free:
            self._free.remove(piece)

    def give_back(self, worker: int, piece: int) -> None:
        """Note that a worker will not do the piece that it has; the piece is free again."""
        if self._dealt.get(piece) == worker:
            del self._dealt[piece]
            self._free.appendleft(piece)

    def fail(self, worker: int, piece: int) -> None:
        """Note that a worker could not do a piece. It is dealt again, up to `MAX_FAILURES` times in
        all."""
        if self._dealt.get(piece) != worker:
            return
        self._failures[piece] += 1
        if self._failures[piece] < MAX_FAILURES:
            self.give_back(worker, piece)
        else:
            del self._dealt[piece]
            self.given_up.append(piece)

    def lose(self, worker: int) -> list[int]:
        """Free the pieces of a worker that is gone, and return them."""
        lost = [piece for piece, owner in self._dealt.items() if owner == worker]
        for piece in lost:
            self.give_back(worker, piece)
        return lost

    def add(self, pieces: Iterable[int]) -> None:
        """Add pieces to be dealt; those that the book has already are ignored."""
        self._free.extendleft(piece for piece in pieces if not self._knows(piece))

    def _knows(self, piece: int) -> bool:
        return piece in self._dealt or piece in self._free or piece in self.given_up

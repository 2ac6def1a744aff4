"""Who has which piece of work, in the book of the one who deals it.

Knows numbers of pieces and of workers. Refuses to know the work, and how messages travel (`mpi`).
Whoever asks is dealt the next piece, so a slow worker gets fewer.
"""

from collections import Counter, deque
from collections.abc import Iterable

MAX_FAILURES = 3  # of one piece: then it is the piece's fault, and no more workers are lost to it


class Book:
    """Pieces that are free, dealt, or done. A piece that comes back is dealt before all others."""

    def __init__(self, pieces: Iterable[int]) -> None:
        self._free = deque(pieces)
        self._dealt: dict[int, int] = {}
        self._failures: Counter[int] = Counter()
        self.given_up: list[int] = []

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be dealt, whatever happens."""
        return not (self._free or self._dealt)

    @property
    def num_left(self) -> int:
        """The pieces that are not done."""
        return len(self._free) + len(self._dealt) + len(self.given_up)

    def deal(self, worker: int) -> int | None:
        """The next piece for a worker; None while there is none, which may change (`is_over`)."""
        if not self._free:
            return None
        piece = self._free.popleft()
        self._dealt[piece] = worker
        return piece

    def finish(self, piece: int) -> None:
        """A piece is done, by whomever: one that was taken for lost may have done it after all."""
        if self._dealt.pop(piece, None) is None and piece in self._free:
            self._free.remove(piece)

    def give_back(self, worker: int, piece: int) -> None:
        """A worker will not do a piece that it has."""
        if self._dealt.get(piece) == worker:
            del self._dealt[piece]
            self._free.appendleft(piece)

    def fail(self, worker: int, piece: int) -> None:
        """A worker could not do a piece; after `MAX_FAILURES` nobody is asked any more."""
        if self._dealt.get(piece) != worker:
            return
        self._failures[piece] += 1
        if self._failures[piece] < MAX_FAILURES:
            self.give_back(worker, piece)
        else:
            del self._dealt[piece]
            self.given_up.append(piece)

    def lose(self, worker: int) -> list[int]:
        """A worker is gone: the pieces that it had, free again."""
        lost = [piece for piece, owner in self._dealt.items() if owner == worker]
        for piece in lost:
            self.give_back(worker, piece)
        return lost

    def add(self, pieces: Iterable[int]) -> None:
        """There are these pieces too."""
        self._free.extendleft(piece for piece in pieces if not self._knows(piece))

    def _knows(self, piece: int) -> bool:
        return piece in self._dealt or piece in self._free or piece in self.given_up

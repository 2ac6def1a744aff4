"""Work in stages, each in its own thread, joined by short queues. Knows threads and clocks.

Refuses to know what is passed on. The time that its neighbours wait shows which stage is the
slowest.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Pipe(Generic[T]):
    """A queue of at most `room` things from one thread to another.

    The writer ends the pipe, and an error of the writer is raised in the reader. The reader closes
    it when it wants no more. `full_s` and `empty_s` are the seconds that writer and reader waited.
    """

    def __init__(self, room: int = 1) -> None:
        self._room, self._things = room, deque[T]()
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self.full_s = self.empty_s = 0.0

    def has_room(self) -> bool:
        """Wait until `put` need not wait; False when nobody will read any more."""
        began = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._things) < self._room)
            self.full_s += time.perf_counter() - began
            return not self._closed

    def put(self, thing: T) -> bool:
        """Wait for room and pass `thing` on; False when nobody will read it."""
        # With a single writer, there is still room when the lock is taken below.
        open_ = self.has_room()
        with self._changed:
            if open_:
                self._things.append(thing)
                self._changed.notify_all()
            return open_

    def end(self, error: BaseException | None = None) -> None:
        """Tell the reader that nothing more comes, or which error ended the writer."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    @property
    def is_closed(self) -> bool:
        """Whether nobody will read any more."""
        return self._closed

    def close(self) -> list[T]:
        """Tell the writer that nothing more is wanted; returns what has not been read."""
        with self._changed:
            self._closed = True
            left = list(self._things)
            self._things.clear()
            self._changed.notify_all()
            return left

    def __iter__(self) -> Iterator[T]:
        while True:
            began = time.perf_counter()
            with self._changed:
                self._changed.wait_for(lambda: self._things or self._ended)
                self.empty_s += time.perf_counter() - began
                if not self._things:
                    break
                thing = self._things.popleft()
                self._changed.notify_all()
            yield thing
        if self._error is not None:
            raise self._error


class Stage:
    """A thread that does `work` while the context is entered; leaving it waits for the thread.

    Its error is raised at the end of the context, unless another is on its way already.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

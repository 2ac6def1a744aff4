"""What the next step needs, made by a thread while this step computes; where a step's time goes.

Knows an order of steps. Refuses to know what is made. One step is made ahead, never more: so memory
is bounded, and what a step reads depends on its number alone, as without the thread.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Ahead(Generic[Made]):
    """`make(step)` of the step after the one that was taken last."""

    def __init__(self, make: Callable[[int], Made], *, steps: int) -> None:
        """Nothing is made for `steps` or later ones."""
        self._make, self._steps = make, steps
        self._step, self._coming = -1, Future[Made]()

    def take(self, step: int) -> Made:
        """What is made for `step`, and begin that of the next one. Raises what `make` raised."""
        made = self._coming.result() if step == self._step else self._make(step)
        if step + 1 < self._steps:
            self._begin(step + 1)
        return made

    def settle(self) -> None:
        """Wait until nothing is being made: whoever reads the same source next is alone with it.
        What went wrong is told to whoever takes it."""
        if self._step >= 0:
            self._coming.exception()

    def _begin(self, step: int) -> None:
        coming = Future[Made]()

        def work() -> None:
            try:
                coming.set_result(self._make(step))
            except BaseException as problem:  # raised where it is taken
                coming.set_exception(problem)

        self._step, self._coming = step, coming
        # A daemon: a rank that ends, for whatever reason, does not wait for a file system that
        # hangs. The watchdog sees a rank that waits for this thread as one in the phase "data".
        threading.Thread(target=work, name=f"step {step}", daemon=True).start()


class Phases:
    """Seconds of this process by phase. A GPU works behind its host, which waits for it in "step"
    at the latest: its own time is the sum, not a single phase."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def ends(self, phase: str) -> None:
        """Count the time since the last phase ended for `phase`."""
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
        self._since = now

    @property
    def total(self) -> float:
        """The seconds of all phases together."""
        return sum(self._seconds.values())

    def row(self) -> dict[str, float]:
        """The figures of a metrics file: `data_s` and so on."""
        return {f"{phase}_s": seconds for phase, seconds in self._seconds.items()}

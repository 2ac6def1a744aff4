"""What a person watches: a bar on a terminal, sparse lines in a log file."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm


def warn(text: str) -> None:
    """Say what is not as it should be, and does not end anything."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


class Progress:
    """Counts work towards `total`, if that is known; `shown=False` on all ranks but one."""

    def __init__(
        self,
        title: str,
        *,
        total: int | None,
        unit: str,
        done: int = 0,
        shown: bool = True,
        every_s: float = 10.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._total, self._unit, self._done = title, total, unit, done
        self._every_s, self._now, self._shown = every_s, now, shown
        self._began = self._last = now()
        self._first = done
        self._bar: tqdm[None] | None = None
        if shown and sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=title, unit=unit, initial=done)

    def advance(self, amount: int, *, note: str = "") -> None:
        """Count `amount` more; `note` stands beside the figures."""
        self._done += amount
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(amount)
        elif self._shown and (
            self._now() - self._last >= self._every_s or self._done == self._total
        ):
            self._last = self._now()
            rate = (self._done - self._first) / max(self._last - self._began, 1e-9)
            of, left = "", ""
            if self._total is not None:
                left_s = (self._total - self._done) / rate if rate else float("inf")
                of, left = f"/{self._total:,}", f", {left_s:,.0f} s left"
            line = f"{self._title}: {self._done:,}{of} {self._unit}"
            print(f"{line}, {rate:,.1f} {self._unit}/s{left}  {note}", flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

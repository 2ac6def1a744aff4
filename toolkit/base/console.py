"""What a person watches: lines, a bar on a terminal, sparse lines in a log file.

Knows streams; everything that the project prints goes through here, so that no text of others can
act upon a terminal (`shown`). Refuses to know what is said.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from toolkit.base.shown import visible

if TYPE_CHECKING:
    from rich.console import Console

LINE_S = 10.0  # between two lines in a log
FIRST_S = 15.0  # of silence, before work says that it goes on


def say(text: object = "") -> None:
    """Print one line. A line break in it, which somebody else has put there, does not break it."""
    print(visible(text), flush=True)


def say_lines(text: str) -> None:
    """Print lines that are ours: whoever put the text together has seen to those of others."""
    for line in text.removesuffix("\n").split("\n"):
        say(line)


def say_json(value: Any, *, indent: int | None = None) -> None:
    """Print JSON, for programs: exact, and ASCII alone."""
    print(json.dumps(value, indent=indent), flush=True)


def warn(text: object) -> None:
    """Say what is not as it should be, and does not end anything."""
    say_beside(f"warning: {text}")


def say_error(text: object) -> None:
    """Say what ends something."""
    say_beside(f"error: {text}")


def say_beside(text: object) -> None:
    """Print one line on stderr."""
    print(visible(text), file=sys.stderr, flush=True)


def rich_console(*, width: int | None = None) -> "Console":
    """A console of rich that takes no text for markup ([red]), a link or a name of a picture (:o:).

    It writes control characters as they come: what it is given has to be `visible`.
    """
    from rich.console import Console  # here: most doors do without

    return Console(width=width, markup=False, emoji=False, highlight=False)


@contextlib.contextmanager
def at_work(
    on: str, *, shown: bool = True, first_s: float | None = None, every_s: float = 60.0
) -> Iterator[None]:
    """Say, while the block runs, that it does: after `first_s` (None: `FIRST_S`), then every
    `every_s`. For work that cannot be counted, or is done elsewhere. On stderr: what is printed may
    be for programs."""
    began, over = time.monotonic(), threading.Event()

    def tell() -> None:
        wait_s = FIRST_S if first_s is None else first_s
        while not over.wait(wait_s):
            say_beside(f"{on}: at work, {time.monotonic() - began:,.0f} s so far")
            wait_s = every_s

    thread = threading.Thread(target=tell, name=f"at work: {on}", daemon=True)
    if shown:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if shown:
            thread.join()


class Progress:
    """Counts work towards `total`, if that is known; `shown=False` on all ranks but one. Nothing is
    said of what takes less than `least_s`."""

    def __init__(
        self,
        title: str,
        *,
        total: int | None,
        unit: str,
        done: int = 0,
        shown: bool = True,
        least_s: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._total, self._unit, self._done = visible(title), total, unit, done
        self._least_s, self._now, self._shown = least_s, now, shown
        self._began = self._last = now()
        self._first = done
        self._bar: Any = None
        if shown and sys.stderr.isatty():
            # Here: the monitors of the watchdog run without installed packages.
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=self._title, unit=unit, initial=done, delay=least_s)

    def advance(self, amount: int, *, note: str = "") -> None:
        """Count `amount` more; `note` stands beside the figures."""
        self._done += amount
        if self._bar is not None:
            self._bar.set_postfix_str(visible(note), refresh=False)
            self._bar.update(amount)
        elif self._shown and self._is_time():
            self._last = self._now()
            rate = (self._done - self._first) / max(self._last - self._began, 1e-9)
            of, left = "", ""
            if self._total is not None:
                left_s = (self._total - self._done) / rate if rate else float("inf")
                of, left = f"/{self._total:,}", f", {left_s:,.0f} s left"
            line = f"{self._title}: {self._done:,}{of} {self._unit}"
            say(f"{line}, {rate:,.1f} {self._unit}/s{left}  {note}")

    def _is_time(self) -> bool:
        if self._now() - self._began < self._least_s:
            return False
        return self._now() - self._last >= LINE_S or self._done == self._total

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

"""What a person watches: lines, a bar on a terminal, sparse lines in a log file.

Knows streams; everything that the project prints goes through here, so that no text from outside
can control a terminal (`shown`). Refuses to know what is said.
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

LINE_S = 10.0  # seconds between two progress lines in a log
FIRST_S = 15.0  # seconds of silence before the first line that says that work goes on


def say(text: object = "") -> None:
    """Print exactly one line: line breaks inside `text`, which come from outside, are escaped."""
    print(visible(text), flush=True)


def say_lines(text: str) -> None:
    """Print several lines that we wrote. The caller has escaped line breaks that came from outside,
    since those would look like lines of ours."""
    for line in text.removesuffix("\n").split("\n"):
        say(line)


def say_json(value: Any, *, indent: int | None = None) -> None:
    """Print JSON for other programs to read: exact values, ASCII characters only."""
    print(json.dumps(value, indent=indent), flush=True)


def warn(text: object) -> None:
    """Print a warning on stderr: something is wrong, but the work goes on."""
    say_beside(f"warning: {text}")


def say_error(text: object) -> None:
    """Print the error that ends a program, a job or a rank, on stderr."""
    say_beside(f"error: {text}")


def say_beside(text: object) -> None:
    """Print one line on stderr."""
    print(visible(text), file=sys.stderr, flush=True)


def rich_console(*, width: int | None = None) -> "Console":
    """A console of rich that reads no markup ([red]), link or emoji name (:o:) out of the text.

    It does not escape control characters: pass it text that is `visible` already.
    """
    from rich.console import Console  # here, because most doors do not need it

    return Console(width=width, markup=False, emoji=False, highlight=False)


@contextlib.contextmanager
def at_work(
    on: str, *, shown: bool = True, first_s: float | None = None, every_s: float = 60.0
) -> Iterator[None]:
    """While the block runs, print a line that says so: the first after `first_s` seconds (None:
    `FIRST_S`), then one every `every_s` seconds. For work that cannot be counted, or that another
    library does. Lines go to stderr, since stdout may be read by a program."""
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
    """Shows how much of `total` (None: unknown) is done. All ranks but one pass `shown=False`.
    Work that takes less than `least_s` seconds shows nothing."""

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
            # Imported here, because the watchdog's monitors run without installed packages.
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=self._title, unit=unit, initial=done, delay=least_s)

    def advance(self, amount: int, *, note: str = "") -> None:
        """Count `amount` more units as done; `note` is shown beside the figures."""
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
        """End the bar and leave it on the screen as it stands."""
        if self._bar is not None:
            self._bar.close()

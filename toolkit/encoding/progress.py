"""The progress of an encoding, for people: rows of all workers, tokens of this one. No torch."""

import time
from collections.abc import Callable

from toolkit.base.console import Progress
from toolkit.encoding.schedule import Units

LOOK_EVERY_S = 30.0  # between two looks at what others have written


class EncodingProgress:
    """A progress bar, or sparse lines. Rows that others have written count too, so that the
    predicted end is that of the whole encoding."""

    def __init__(
        self,
        output: Units,
        *,
        title: str = "embed",
        unit: str = "rows",
        least_s: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output, self._now = output, now
        self._open = {unit.name: unit.stop - unit.start for unit in output.unfinished()}
        self._began = self._looked = now()
        self._tokens = self._mine = self._others = 0
        total = sum(self._open.values())
        self._progress = Progress(title, total=total, unit=unit, least_s=least_s, now=now)

    def on_rows(self, rows: int, tokens: int) -> None:
        """Count rows and tokens that this worker has embedded."""
        self._tokens += tokens
        self._mine += rows
        rate = self._tokens / max(self._now() - self._began, 1e-9)
        note = f"{self._tokens:,} tokens here, {rate:,.0f} tokens/s"
        self._progress.advance(rows, note=note)
        if self._now() - self._looked >= LOOK_EVERY_S:
            self._looked = self._now()
            finished = self._output.finished()
            there = sum(rows for name, rows in self._open.items() if name in finished)
            # Our rows count before they are written: others' may be a few too few, never too many.
            others = max(self._others, there - self._mine)
            self._progress.advance(others - self._others, note=note)
            self._others = others

    def close(self) -> None:
        """End the progress bar where it stands."""
        self._progress.close()

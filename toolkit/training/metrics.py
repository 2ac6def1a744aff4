"""The record of a run, RUN/metrics.jsonl: one JSON line per logged step. All views show it."""

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.base.console import warn
from toolkit.base.files import write_atomic
from toolkit.base.layout import METRICS_FILE, SKIPPED_FILE
from toolkit.runs.records import read_metrics


class MetricsLog:
    """Appends steps. A restart at `step` opens it and drops all later steps, so that no step is
    there twice; a line that a crash cut short is dropped too."""

    def __init__(self, run_dir: Path, *, step: int) -> None:
        self._path = run_dir / METRICS_FILE
        # A run without a checkpoint begins at step 0 again, and writes its line again.
        kept = [row for row in read_metrics(run_dir) if 0 < step >= int(row["step"])]
        write_atomic(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._waiting: dict[Path, list[str]] = {}

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one step. JSON has no NaN: a number that is not finite becomes null."""
        self._append(self._path, row)

    def write_skipped(self, row: Mapping[str, Any], *, samples: Sequence[str]) -> None:
        """Append a skipped step, and the samples of its batch to a file of their own."""
        self._append(self._path, row)
        self._append(self._path.with_name(SKIPPED_FILE), {**row, "samples": list(samples)})

    def _append(self, path: Path, row: Mapping[str, Any]) -> None:
        """A full disk does not end the run: it warns, and the line waits until there is room."""
        finite = {name: value if _is_finite(value) else None for name, value in row.items()}
        waiting = self._waiting.setdefault(path, [])
        waiting.append(json.dumps(finite, ensure_ascii=False) + "\n")
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a", encoding="utf-8") as handle:
                handle.write("".join(waiting))
            waiting.clear()
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(path, size)  # half a line would spoil the next
            if len(waiting) == 1:
                warn(f"{path}: {error.strerror}; lines wait until they can be written")

    def close(self) -> None:
        """Warn of the lines that could never be written."""
        for path, waiting in self._waiting.items():
            if waiting:
                lost = f"{len(waiting)} lines could not be written, the first: {waiting[0].strip()}"
                warn(f"{path}: {lost}")


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)

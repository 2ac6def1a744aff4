"""The record of a run: one JSON line per logged step, RUN/metrics.jsonl, the truth of all views."""

import json
from collections.abc import Mapping
from pathlib import Path

from toolkit.files import write_atomic

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends steps. Opened after a restart at `step`, it drops what came after that step, so that
    no step stands twice; a line that a crash cut short is dropped too."""

    def __init__(self, run_dir: Path, *, step: int) -> None:
        self._path = run_dir / METRICS_FILE
        kept = [row for row in read_metrics(run_dir) if int(row["step"]) <= step]
        write_atomic(self._path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, row: Mapping[str, float]) -> None:
        """Append one step."""
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(dict(row)) + "\n")


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """All whole lines of a run's metrics, in order."""
    path = run_dir / METRICS_FILE
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # the last line of a killed run
    return rows

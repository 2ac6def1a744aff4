"""What a run says of itself, line by line: its metrics and its starts, as far as they are whole.

Knows which lines can be believed. Refuses to write them: `training.metrics` and `training.starts`
do. No torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.base.files import read_json_lines
from toolkit.base.layout import METRICS_FILE, STARTS_FILE


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics, in order: a step, and numbers or null. A line that is
    damaged into something else is left out, as one is that was cut short."""
    rows = read_json_lines(run_dir / METRICS_FILE)
    return [row for row in rows if _is_step(row) and all(map(_is_number, row.values()))]


def read_starts(run_dir: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's starts, in order; each tells at least the step it began after."""
    return [row for row in read_json_lines(run_dir / STARTS_FILE) if _is_step(row)]


def _is_step(row: Mapping[str, Any]) -> bool:
    return type(row.get("step")) is int


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, int | float)

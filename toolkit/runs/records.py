"""What a run says of itself: its metrics and its starts, line by line, as far as they are whole;
and what an encoding took over from an older one.

Knows what can be believed. Refuses to write it: `training.metrics`, `training.starts` and
`encoding.reuse` do. No torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from toolkit.base.documents import Count, checked
from toolkit.base.files import read_json, read_json_lines
from toolkit.base.layout import METRICS_FILE, REUSE_FILE, STARTS_FILE

EPOCHS = "epochs/"  # before the name of a source: a figure of runs on several sources


class Reuse(TypedDict):
    """What became of the texts of a corpus since the older `encoding`: the text was there; only its
    id was; neither was; ids that are not there any more. `why_none`: why nothing could be taken
    over, if so."""

    encoding: str
    digest: str
    why_none: str
    reused: Count
    changed: Count
    new: Count
    gone: Count


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics, in order: a step, and numbers or null. A line that is
    damaged into something else is left out, as one is that was cut short."""
    rows = read_json_lines(run_dir / METRICS_FILE)
    return [row for row in rows if _is_step(row) and all(map(_is_number, row.values()))]


def epochs_of(row: Mapping[str, Any]) -> dict[str, float]:
    """How often each source of a mixture had been read, by a line of the metrics."""
    names = [name for name in row if name.startswith(EPOCHS)]
    return {name.removeprefix(EPOCHS): row[name] for name in names if row[name] is not None}


def read_starts(run_dir: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's starts, in order; each tells at least the step it began after."""
    return [row for row in read_json_lines(run_dir / STARTS_FILE) if _is_step(row)]


def reuse_line(record: Reuse) -> str:
    """What an encoding took over from an older one, in one line."""
    why = f" ({record['why_none']})" if record["why_none"] else ""
    return (
        f"{record['reused']:,} texts reused of {record['encoding']}{why}, {record['new']:,} new, "
        f"{record['changed']:,} changed, {record['gone']:,} gone"
    )


def read_reuse(output_dir: Path) -> str:
    """`reuse_line` of an encoding; empty for one that reused nothing. `BadInput` when its record is
    damaged."""
    path = output_dir / REUSE_FILE
    if not path.is_file():
        return ""
    return reuse_line(checked(read_json(path), Reuse, source=path, advice="delete it"))


def _is_step(row: Mapping[str, Any]) -> bool:
    return type(row.get("step")) is int


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, int | float)

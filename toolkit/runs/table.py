"""Standings of runs as a table for a terminal.

Knows rich. Refuses to know how far a run has come, and who watches.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolkit.base.console import rich_console
from toolkit.base.shown import visible
from toolkit.runs.standing import Standing

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

SHOWN_NODES = 8


def table(stages: Sequence[Standing], *, width: int) -> "RenderableType":
    """One row per stage. Lines below it tell what went wrong, when nodes were last heard, how often
    the sources of a mixture were read and, where the columns fill the `width`, why a stage waits.
    Empty columns are left out. So is the run's where there is only one run, which becomes the
    title. If the rest is too wide, `_DISPENSABLE` columns go, and a last line names them."""
    from rich.console import Group
    from rich.text import Text

    runs = {one.run for one in stages}
    title = Text(visible(runs.pop()), style="bold") if len(runs) == 1 else None
    hidden = ["run"] * bool(title)
    inline = _rows(stages, hidden=hidden, reasons=True)
    rows, left_out = inline, tuple[str, ...]()
    notes = list[tuple[Standing, str]]()
    if _width(inline) > width:
        notes += [(one, f"{one.state}: {one.reason}") for one in stages if one.reason]
        for number in range(len(_DISPENSABLE) + 1):
            left_out = _DISPENSABLE[:number]
            rows = _rows(stages, hidden=[*hidden, *left_out], reasons=False)
            if _width(rows) <= width:
                break
    notes += [
        (one, line)
        for one in stages
        for line in (one.trouble, beats(one.heartbeats), _epochs(one.epochs))
        if line
    ]
    lines = [
        Text(visible(f"{one.stage if title else f'{one.run} {one.stage}'}: {it}"))
        for one, it in notes
    ]
    # A column that is empty would not be shown in any width.
    missed = [head for head in left_out if any(_cells(one, reason=False)[head] for one in stages)]
    if missed:
        lines.append(
            Text(visible(f"not shown: {', '.join(missed)} (a wider terminal, | cat or --json)"))
        )
    return Group(*([title] if title else []), rows, *lines)


def _rows(stages: Sequence[Standing], *, hidden: Sequence[str], reasons: bool) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    lines = [_cells(one, reason=reasons) for one in stages]
    for head in _cells(Standing("", "", ""), reason=False):
        if head in hidden or not any(line[head] for line in lines):
            for line in lines:
                del line[head]
        elif head in _WORDS:
            rows.add_column(head, overflow="fold")
        else:
            rows.add_column(head, justify="right", no_wrap=True)
    for line in lines:
        cells = line.values()
        rows.add_row(*(c if isinstance(c, Text) else Text(visible(c)) for c in cells))
    return rows


def _width(rows: "Table") -> int:
    """The columns of text that the table takes when nothing is folded."""
    from rich.measure import Measurement

    wide = rich_console(width=10_000)
    return Measurement.get(wide, wide.options, rows).maximum


def beats(heartbeats: Sequence[Mapping[str, Any]]) -> str:
    """When each node was last heard; of many nodes those that have been silent for longest."""
    oldest = sorted(heartbeats, key=lambda beat: -beat["seconds"])
    lines = []
    for beat in oldest[:SHOWN_NODES]:
        place = f", step {beat['step']} {beat['phase']}" if "step" in beat else ""
        lines.append(f"{beat['node']} {duration(beat['seconds'])} ago{place}")
    if (more := len(oldest) - SHOWN_NODES) > 0:
        lines.append(f"{more} more nodes since")
    return f"last heartbeat of {'; '.join(lines)}" if lines else ""


def _epochs(epochs: Mapping[str, float]) -> str:
    """How often each source of a mixture has been read."""
    shown = ", ".join(f"{source} {number:.2f}" for source, number in epochs.items())
    return f"epochs: {shown}" if shown else ""


def _cells(one: Standing, *, reason: bool) -> dict[str, Any]:
    """The cells of a stage by column; the state has its reason beside it if `reason`."""
    from rich.text import Text

    state = Text(visible(one.state), style=_STYLES.get(one.state.partition(" ")[0], ""))
    if reason and one.reason:
        state.append(visible(f" ({one.reason})"), style="dim")
    return {
        "run": one.run,
        "stage": one.stage,
        "jobs": ", ".join(one.jobs),
        "state": state,
        "done": f"{one.done:,}/{one.total:,} {one.unit}" if one.total else "",
        "tokens/s": f"{one.tokens_per_s:,.0f}" if one.tokens_per_s else "",
        "loss": f"{one.loss:.4f}" if one.loss is not None else "",
        "left": duration(one.left_s),
        "restarts": str(one.restarts) if one.restarts else "",
        "last sign": f"{duration(one.last_sign_s)} ago" if one.last_sign_s is not None else "",
    }


# Columns that may be left out, in this order.
_DISPENSABLE = ("tokens/s", "jobs", "restarts", "loss", "last sign", "left")
_WORDS = ("run", "stage", "jobs", "state")  # the others are numbers
_STYLES = {"done": "green", "RUNNING": "cyan", "running": "cyan", "PENDING": "yellow"}
_STYLES |= dict.fromkeys(
    ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "stopped", "failed"), "red"
)


def duration(seconds: float | None) -> str:
    """Seconds in their two largest units, as in 3 d 4 h or 5 min 10 s."""
    if seconds is None:
        return ""
    left, parts = int(seconds), list[str]()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2])

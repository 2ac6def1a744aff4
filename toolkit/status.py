# PYTHON_ARGCOMPLETE_OK
"""Where runs stand: stage, jobs, state and reason, steps, speed, time left, restarts, errors.

    python -m toolkit.status RUN [RUN ...] [--watch] [--json]
    python -m toolkit.status --all [FOLDER]

Reads what runs and launches write, and asks SLURM where there is one. Nothing is changed.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.completion import answer_shell
from toolkit.console import rich_console, say_json
from toolkit.door import Parser, guarded
from toolkit.files import BadInput
from toolkit.shown import visible
from toolkit.standing import Standing, standings, standings_below

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

WATCH_S = 5.0
SHOWN_NODES = 8
PIPED_WIDTH = 200


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.status`."""
    parser = Parser(
        prog="python -m toolkit.status",
        description="Show where runs stand: every stage of a pipeline, a run, or an encoding.",
        epilog="examples:\n  python -m toolkit.status runs/llm2vec --watch\n"
        "  python -m toolkit.status --all --json | jq '.[] | select(.state == \"FAILED\")'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="a run's directory")
    parser.add_argument(
        "--all",
        nargs="?",
        const=Path("runs"),
        type=Path,
        metavar="FOLDER",
        help="show every run below a folder (default runs)",
    )
    parser.add_argument("--watch", action="store_true", help=f"show it again every {WATCH_S:.0f} s")
    parser.add_argument("--json", action="store_true", help="print a list of stages as JSON")
    answer_shell(parser)
    arguments = parser.parse_args(argv)
    if not arguments.runs and not arguments.all:
        parser.error("name a RUN, or --all")
    try:
        return guarded(lambda: run(arguments))
    except KeyboardInterrupt:  # the way out of --watch
        return 0


def run(arguments: argparse.Namespace) -> None:
    """Print the table, once or again and again."""
    if arguments.json:
        say_json([dataclasses.asdict(one) for one in look(arguments)], indent=2)
        return
    # Here and not above: the help text need not wait for it.
    from rich.live import Live

    console = rich_console()
    if not (arguments.watch and console.is_terminal):
        show(look(arguments), console=console)
        while arguments.watch:
            time.sleep(WATCH_S)
            show(look(arguments), console=console)
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(table(look(arguments), width=console.width), refresh=True)
            time.sleep(WATCH_S)


def look(arguments: argparse.Namespace) -> list[Standing]:
    """All stages of what was asked for. Raises `BadInput` for what is no run."""
    now = time.time()
    found = [one for path in arguments.runs for one in standings(path, now=now)]
    if arguments.all:
        found += standings_below(arguments.all, now=now)
        if not found:
            raise BadInput(f"{arguments.all}: holds no run")
    return found


def show(found: Sequence[Standing], *, console: "Console") -> None:
    """On a terminal as wide as it is; elsewhere as wide as the table."""
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    console.print(table(found, width=console.width))


def table(found: Sequence[Standing], *, width: int) -> "RenderableType":
    """A line a stage; below it what went wrong, when nodes were heard, and where the columns fill
    the `width`, why a stage waits. A column that would be empty is left out, and so is the run's
    where there is one only, in favour of a title; then as many as do not fit, which a last line
    names."""
    from rich.console import Group
    from rich.text import Text

    runs = {one.run for one in found}
    title = Text(visible(runs.pop()), style="bold") if len(runs) == 1 else None
    hidden = ["run"] * bool(title)
    inline = _rows(found, hidden=hidden, reasons=True)
    rows, left_out = inline, tuple[str, ...]()
    told = list[tuple[Standing, str]]()
    if _width(inline) > width:
        told += [(one, f"{one.state}: {one.reason}") for one in found if one.reason]
        for number in range(len(_DISPENSABLE) + 1):
            left_out = _DISPENSABLE[:number]
            rows = _rows(found, hidden=[*hidden, *left_out], reasons=False)
            if _width(rows) <= width:
                break
    told += [(one, line) for one in found for line in (one.trouble, beats(one.heartbeats)) if line]
    lines = [
        Text(visible(f"{one.stage if title else f'{one.run} {one.stage}'}: {it}"))
        for one, it in told
    ]
    # An empty one would not be shown anywhere.
    missed = [head for head in left_out if any(_cells(one, reason=False)[head] for one in found)]
    if missed:
        lines.append(
            Text(visible(f"not shown: {', '.join(missed)} (a wider terminal, | cat or --json)"))
        )
    return Group(*([title] if title else []), rows, *lines)


def _rows(found: Sequence[Standing], *, hidden: Sequence[str], reasons: bool) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    lines = [_cells(one, reason=reasons) for one in found]
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
    """That it would like to have."""
    from rich.measure import Measurement

    wide = rich_console(width=10_000)
    return Measurement.get(wide, wide.options, rows).maximum


def beats(heartbeats: Sequence[Mapping[str, Any]]) -> str:
    """When each node was last heard; of many those that were heard longest ago."""
    oldest = sorted(heartbeats, key=lambda beat: -beat["seconds"])
    lines = []
    for beat in oldest[:SHOWN_NODES]:
        place = f", step {beat['step']} {beat['phase']}" if "step" in beat else ""
        lines.append(f"{beat['node']} {duration(beat['seconds'])} ago{place}")
    if (more := len(oldest) - SHOWN_NODES) > 0:
        lines.append(f"{more} more nodes since")
    return f"last heartbeat of {'; '.join(lines)}" if lines else ""


def _cells(one: Standing, *, reason: bool) -> dict[str, Any]:
    """By the head of their columns; the state with its `reason`, or without."""
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


# What may be left out, the first first.
_DISPENSABLE = ("tokens/s", "jobs", "restarts", "loss", "last sign", "left")
_WORDS = ("run", "stage", "jobs", "state")  # the others are numbers
_STYLES = {"done": "green", "RUNNING": "cyan", "running": "cyan", "PENDING": "yellow"}
_STYLES |= dict.fromkeys(("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "stopped"), "red")


def duration(seconds: float | None) -> str:
    """In the two largest units: 3 d 4 h, 5 min 10 s."""
    if seconds is None:
        return ""
    left, parts = int(seconds), list[str]()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2])


if __name__ == "__main__":
    sys.exit(main())

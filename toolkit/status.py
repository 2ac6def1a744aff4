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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.base.console import rich_console, say_json
from toolkit.base.errors import BadInput
from toolkit.command_line.completion import answer_shell
from toolkit.command_line.door import Parser, guarded
from toolkit.runs.standing import Standing, standings, standings_below
from toolkit.runs.table import table

if TYPE_CHECKING:
    from rich.console import Console

WATCH_S = 5.0
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
    """Print the table once, or every `WATCH_S` seconds with --watch."""
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
    """The standing of every stage asked for. Raises `BadInput` for a folder that is no run."""
    now = time.time()
    stages = [one for path in arguments.runs for one in standings(path, now=now)]
    if arguments.all:
        stages += standings_below(arguments.all, now=now)
        if not stages:
            raise BadInput(f"{arguments.all}: holds no run")
    return stages


def show(stages: Sequence[Standing], *, console: "Console") -> None:
    """Print the table: as wide as the terminal, or else `PIPED_WIDTH` columns wide."""
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    console.print(table(stages, width=console.width))


if __name__ == "__main__":
    sys.exit(main())

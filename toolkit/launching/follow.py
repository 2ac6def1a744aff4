"""Following a launched run to its end: what changes, as a table on a terminal or as lines.

Knows stages and SLURM's states. Refuses to know how they were submitted. No torch.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.base.console import rich_console, say, say_error
from toolkit.cluster.queue import FINAL, UNKNOWN
from toolkit.runs.standing import DONE, Standing, standings
from toolkit.runs.table import table

if TYPE_CHECKING:
    from rich.live import Live

LOOK_S = 2.0
LINE_S = 300.0  # between two lines of a stage whose state stays the same
ENDED = 3  # looks in a row that must find nothing running: a requeued job is over for a moment
QUESTION = "the jobs go on without this. [d]etach, [c]ancel them, or [w]atch on? "


def follow(run_dir: Path) -> bool:
    """Watch a run until all stages are done or nothing runs; returns whether all are done.

    Ctrl-C never ends a job by itself: on a terminal it asks, elsewhere it stops watching. The
    result is then True.
    """
    from rich.live import Live

    console = rich_console()
    while True:
        try:
            if not console.is_terminal:
                return _until_over(run_dir, show=_Lines())
            with Live(console=console, auto_refresh=False) as live:
                return _until_over(run_dir, show=_in_place(live))
        except KeyboardInterrupt:
            if not _asked_to_go_on(run_dir):
                return True


def is_over(one: Standing) -> bool:
    """Whether a stage will do nothing more, as far as SLURM knows."""
    words = re.findall("[A-Z_]+", one.state)  # of an array: RUNNING 3, PENDING 5
    return one.state in (DONE, UNKNOWN) or (bool(words) and set(words) <= FINAL)


def _until_over(run_dir: Path, *, show: Callable[[Sequence[Standing]], None]) -> bool:
    ended = 0
    while True:
        stages = standings(run_dir, now=time.time())
        show(stages)
        if all(one.state == DONE for one in stages):
            return True
        ended = ended + 1 if all(is_over(one) for one in stages) else 0
        if ended >= ENDED:
            for one in stages:
                if one.state != DONE:
                    why = one.trouble or one.reason or "see its logs"
                    say_error(f"{one.stage}: {one.state}: {why}")
            return False
        time.sleep(LOOK_S)


def _in_place(live: "Live") -> Callable[[Sequence[Standing]], None]:
    return lambda stages: live.update(table(stages, width=live.console.width), refresh=True)


class _Lines:
    """Prints a line when a stage changes its state, and every `LINE_S` while it progresses."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, float]] = {}

    def __call__(self, stages: Sequence[Standing]) -> None:
        for one in stages:
            state, said_at = self._said.get(one.stage, ("", 0.0))
            now = time.monotonic()
            if state == one.state and (now - said_at < LINE_S or not one.done):
                continue
            self._said[one.stage] = (one.state, now)
            line = f"{one.stage}: {one.state}" + f" ({one.reason})" * bool(one.reason)
            if one.done:
                line += f", {one.done:,}/{one.total:,} {one.unit}"
            say(line)


def _asked_to_go_on(run_dir: Path) -> bool:
    """Ask what to do after Ctrl-C, and do it; returns whether to go on watching."""
    answer = ""
    if sys.stdin.isatty():
        try:
            answer = input(f"\n{QUESTION}").strip().lower()[:1]
        except (KeyboardInterrupt, EOFError):
            say()
    if answer == "w":
        return True
    jobs = [job for one in standings(run_dir, now=time.time()) for job in one.jobs]
    if answer == "c" and jobs:
        subprocess.run(["scancel", *jobs], check=False)
        say(f"cancelled {', '.join(jobs)}; the same command goes on from the last checkpoint")
    else:
        say(f"the jobs go on; see python -m toolkit.status {run_dir}")
    return False

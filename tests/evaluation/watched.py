"""A worker of an evaluation that tells which units of corpora it embeds, and can end in one.

    python -m tests.evaluation.watched LOG RECIPE '{"meet": 2, "end_at": 3, "signal": "KILL"}'

It is the real worker but for this: before it embeds a unit, it appends `CORPUS UNIT PID` to LOG.
Before its first one it waits until `meet` workers are there; at its own `end_at`-th unit it sends
itself `signal`.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from toolkit import evaluate
from toolkit.base.files import append_line
from toolkit.encoding.pipeline import Pipeline
from toolkit.evaluation import corpora

WAIT_S = 120.0


def embedded(log: Path) -> list[tuple[str, int, int]]:
    """Corpus, unit and worker of each line."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(name, int(unit), int(pid)) for name, unit, pid in map(str.split, lines)]


def main(log: Path, recipe: str, settings: dict[str, Any]) -> int:
    """Run the door of evaluation; returns its exit code."""
    inner_run, inner_embed = corpora._run, Pipeline._embed
    where = {"name": ""}
    num_mine = 0

    def run(work: Any, planned: Any, **others: Any) -> None:
        where["name"] = planned.directory.name
        inner_run(work, planned, **others)

    def embed(self: Pipeline, texts: Any) -> Any:
        nonlocal num_mine
        append_line(log, f"{where['name']} {texts.unit.number} {os.getpid()}")
        num_mine += 1
        until = time.monotonic() + WAIT_S
        while len({pid for *_, pid in embedded(log)}) < settings.get("meet", 1):
            assert time.monotonic() < until, "nobody has come to help"
            time.sleep(0.01)
        if num_mine == settings.get("end_at"):
            os.kill(os.getpid(), signal.Signals[f"SIG{settings['signal']}"])
        return inner_embed(self, texts)

    corpora._run, Pipeline._embed = run, embed  # type: ignore[method-assign]
    return evaluate.main([recipe])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])))

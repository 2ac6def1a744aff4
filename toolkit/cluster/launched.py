"""What was launched for a run: RUN/launched.json, written as the jobs are submitted.

Knows names, paths and job ids. Refuses to know what a stage does.
"""

import dataclasses
import datetime
from pathlib import Path
from typing import Any

from toolkit.files import read_json, write_json

LAUNCHED_FILE = "launched.json"
PREFETCHED_FILE = "prefetched.json"  # what `toolkit.prefetch` has brought


@dataclasses.dataclass(frozen=True)
class Launched:
    """A stage: its kind, the directory that it writes, that of its logs, the steps that it has to
    do (None: it has none), and the jobs submitted for it, in order (none: it ran here), at `time`
    (ISO 8601, of the file that it was read from)."""

    name: str
    kind: str
    output: str
    logs: str
    steps: int | None
    jobs: tuple[str, ...] = ()
    time: str = ""


def write_launched(run_dir: Path, stages: list[Launched]) -> None:
    """Write what is known now; called again with more jobs."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    shown = [dataclasses.asdict(stage) for stage in stages]
    for stage in shown:
        del stage["time"]
    told = {"time": now, "stages": shown}
    write_json(run_dir / LAUNCHED_FILE, told)


def read_launched(run_dir: Path) -> list[Launched]:
    """The stages of the last launch; none where there was none."""
    if not (run_dir / LAUNCHED_FILE).is_file():
        return []
    told: dict[str, Any] = read_json(run_dir / LAUNCHED_FILE)
    return [
        Launched(**{**stage, "jobs": tuple(stage["jobs"]), "time": told["time"]})
        for stage in told["stages"]
    ]

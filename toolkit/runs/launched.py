"""What was launched for a run: RUN/launched.json, written as the jobs are submitted.

Knows names, paths and job ids. Refuses to know what a stage does.
"""

import dataclasses
import datetime
from pathlib import Path

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from toolkit.base.documents import checked
from toolkit.base.files import read_json, write_json
from toolkit.base.layout import LAUNCHED_FILE


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


class _Stage(TypedDict):
    name: str
    kind: str
    output: str
    logs: str
    steps: int | None
    jobs: list[str]


class _Told(TypedDict):
    time: str
    stages: list[_Stage]


def write_launched(run_dir: Path, stages: list[Launched]) -> None:
    """Write what is known now; called again with more jobs."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    shown = [dataclasses.asdict(stage) for stage in stages]
    for stage in shown:
        del stage["time"]
    content = {"time": now, "stages": shown}
    write_json(run_dir / LAUNCHED_FILE, content)


def read_launched(run_dir: Path) -> list[Launched]:
    """The stages of the last launch; none where there was none. `BadInput` for another file."""
    if not (path := run_dir / LAUNCHED_FILE).is_file():
        return []
    content = checked(read_json(path), _Told, source=path, advice="launch again, or remove it")
    return [
        Launched(
            stage["name"],
            kind=stage["kind"],
            output=stage["output"],
            logs=stage["logs"],
            steps=stage["steps"],
            jobs=tuple(stage["jobs"]),
            time=content["time"],
        )
        for stage in content["stages"]
    ]

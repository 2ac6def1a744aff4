"""What was launched for a run: RUN/launched.json, written as the jobs are submitted.

Knows names, paths and job ids. Refuses to know what a stage does.
"""

import dataclasses
import datetime
import socket
from pathlib import Path
from typing import NotRequired

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from toolkit.base.documents import checked
from toolkit.base.files import read_json, write_json
from toolkit.base.layout import LAUNCHED_FILE


@dataclasses.dataclass(frozen=True)
class Launched:
    """A launched stage: its kind, its output directory, the directory of its logs, its number of
    steps (None where it has no steps), and the ids of its jobs in order (none if it ran on this
    machine). `time` is when the record was written (ISO 8601), `node` the host that wrote it (empty
    in older files)."""

    name: str
    kind: str
    output: str
    logs: str
    steps: int | None
    jobs: tuple[str, ...] = ()
    time: str = ""
    node: str = ""


class _Stage(TypedDict):
    name: str
    kind: str
    output: str
    logs: str
    steps: int | None
    jobs: list[str]


class _Document(TypedDict):
    time: str
    node: NotRequired[str]
    stages: list[_Stage]


def write_launched(run_dir: Path, stages: list[Launched]) -> None:
    """Write what has been launched so far; called again after each job. Directories inside the run
    directory are written relative to it, so that a run can be moved."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    shown = [dataclasses.asdict(stage) for stage in stages]
    for stage in shown:
        stage |= {key: _seen_from(run_dir, stage[key]) for key in ("output", "logs")}
    # One time and host for the file: all its stages were launched by one command.
    for stage in shown:
        del stage["time"], stage["node"]
    content = {"time": now, "node": socket.gethostname(), "stages": shown}
    write_json(run_dir / LAUNCHED_FILE, content)


def read_launched(run_dir: Path) -> list[Launched]:
    """The stages of the last launch, if there was one. `BadInput` for a file of another kind."""
    if not (path := run_dir / LAUNCHED_FILE).is_file():
        return []
    content = checked(read_json(path), _Document, source=path, advice="launch again, or remove it")
    return [
        Launched(
            stage["name"],
            kind=stage["kind"],
            # An absolute path stays what it is, as all were in older files.
            output=str(run_dir / stage["output"]),
            logs=str(run_dir / stage["logs"]),
            steps=stage["steps"],
            jobs=tuple(stage["jobs"]),
            time=content["time"],
            node=content.get("node", ""),
        )
        for stage in content["stages"]
    ]


def _seen_from(run_dir: Path, path: str) -> str:
    inside = Path(path).is_relative_to(run_dir.absolute())
    return str(Path(path).relative_to(run_dir.absolute())) if inside else path

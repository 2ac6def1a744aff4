"""How far a stage has come, by what it has written, and what SLURM says of its jobs.

Knows the files of runs and encodings. Refuses to know how it is shown. No torch.
"""

import contextlib
import dataclasses
import datetime
import os
import re
import socket
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from toolkit.base.documents import Count, checked
from toolkit.base.errors import BadInput
from toolkit.base.files import is_committed, read_json
from toolkit.base.layout import (
    COMMIT_MARKER,
    CONFIG_FILE,
    DOCUMENTS_FILE,
    ENCODER_DIR,
    HEARTBEATS_FILE,
    LAUNCHED_FILE,
    LEASE_DIR,
    LOG_DIR,
    MANIFEST_FILE,
    MERGED_FILE,
    METRICS_FILE,
    PAGE_FILE,
    PART_DIR,
    PLAN_FILE,
    SCORES_FILE,
    STARTING_FILE,
    UNIT_DIR,
)
from toolkit.cluster.heartbeats import read_heartbeats
from toolkit.cluster.leases import beats_of_hosts
from toolkit.cluster.queue import FINAL, FORGOTTEN, UNKNOWN, JobState, job_states
from toolkit.cluster.topology import LOCAL
from toolkit.runs.launched import Launched, read_launched
from toolkit.runs.records import epochs_of, read_metrics, read_reuse, read_starts
from toolkit.settings.pipeline_schema import PipelineRecipe
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import TrainingRecipe


def _as_told(time: str) -> str:
    datetime.datetime.fromisoformat(time)  # its ValueError becomes that of `checked`
    return time


class _Starting(TypedDict):
    kind: str
    steps: int
    pid: int
    time: Annotated[str, AfterValidator(_as_told)]
    job: str
    node: str


class _Bounds(TypedDict):
    bounds: Annotated[list[Count], Field(min_length=1)]


RECENT = 20  # logged steps or units that the speed is a median of
QUIET_S = 120.0  # a run without a sign for so long has stopped, where no scheduler can be asked
TAIL_BYTES = 65536
DONE, STOPPED, RUNNING, NOT_BEGUN = "done", "stopped", "running", "not begun"
FAILED = "failed"
LOADING = "loads its model"
UNREADABLE = "not readable"
SHARED = ("embed", "questions")  # kinds whose work is divided into units
# The most telling first: the later ones say only that something went wrong.
ERRORS = (("watchdog: ",), ("error: ",), ("slurmstepd: error: ", "srun: error: ", "submitit ERROR"))
TRACEBACK = "Traceback (most recent call last):"

# What a stage writes last, by its kind; training has steps instead.
LAST_FILE = {
    "embed": MANIFEST_FILE,
    "evaluate": SCORES_FILE,
    "documents": DOCUMENTS_FILE,
    "mine": COMMIT_MARKER,
    "merge": MERGED_FILE,
    "report": PAGE_FILE,
}


@dataclasses.dataclass
class Standing:
    """A stage of a run. `done` of `total` are steps or units. Times are in seconds: `left_s` to its
    end at its present speed, `last_sign_s` since it wrote something. `heartbeats` has one entry per
    node heard while the stage runs: `node`, `seconds` since then and, where a rank trains, `step`
    and `phase`. `trouble` is the last line of its logs that reports an error, with the log's name.
    `epochs`: how often each source of a mixture has been read.
    """

    run: str
    stage: str
    kind: str
    state: str = NOT_BEGUN
    reason: str = ""
    nodes: str = ""
    jobs: Sequence[str] = ()
    done: int = 0
    total: int = 0
    unit: str = ""
    tokens_per_s: float | None = None
    loss: float | None = None
    left_s: float | None = None
    restarts: int = 0
    last_sign_s: float | None = None
    heartbeats: Sequence[Mapping[str, Any]] = ()
    trouble: str = ""
    epochs: Mapping[str, float] = dataclasses.field(default_factory=dict)


def runs_below(folder: Path) -> list[Path]:
    """The runs, pipelines and encodings in a folder; a pipeline's stages are not listed again."""
    runs: list[Path] = []
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such directory")
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
            continue  # somebody else's
        if _is_run(path):
            runs.append(path)
        elif path.is_dir() and not path.name.startswith("."):
            runs += [inner for inner in sorted(path.iterdir()) if _is_run(inner)]
    return runs


def standings_below(folder: Path, *, now: float) -> list[Standing]:
    """The standings of all runs in a folder; one that cannot be read is `UNREADABLE`, with why."""
    stages = []
    for path in runs_below(folder):
        try:
            stages += standings(path, now=now)
        except (BadInput, OSError) as error:
            why = str(error).removeprefix(f"{path}: ")
            stages.append(Standing(str(path), path.name, "", state=UNREADABLE, reason=why))
    return stages


def standings(path: Path, *, now: float) -> list[Standing]:
    """The stages of a run, pipeline or encoding. Raises `BadInput` for what is none of them."""
    stages = read_launched(path)
    if not stages:
        stages = [Launched(path.name, _kind_of(path), str(path), str(path / LOG_DIR), None)]
    return [_standing(stage, run=str(path), now=now) for stage in stages]


def is_running(state: str) -> bool:
    """Whether this is the state of a stage at work, by SLURM or by its files."""
    # The state of an array names several: some tasks run while others wait or are done.
    words = re.findall("[A-Za-z_]+", state)
    return any(word in ("RUNNING", RUNNING, "COMPLETING") for word in words)


def _heartbeats(output: Path, *, kind: str, now: float) -> list[dict[str, Any]]:
    if kind not in SHARED:
        return read_heartbeats(output / HEARTBEATS_FILE, now=now)
    beats = beats_of_hosts(output / LEASE_DIR, now=now)
    return [{"node": host, "seconds": round(beats[host], 1)} for host in sorted(beats)]


def _is_run(path: Path) -> bool:
    names = (LAUNCHED_FILE, CONFIG_FILE, PLAN_FILE, STARTING_FILE)
    return any((path / name).is_file() for name in names)


def _kind_of(path: Path) -> str:
    if (path / PLAN_FILE).is_file():
        plan = read_json(path / PLAN_FILE)
        return "questions" if isinstance(plan, dict) and "per_document" in plan else "embed"
    if (path / SCORES_FILE).is_file() or (path / PART_DIR).is_dir():
        return "evaluate"
    if (path / DOCUMENTS_FILE).is_file():
        return "documents"
    if (path / MERGED_FILE).is_file():
        return "merge"
    if not (path / CONFIG_FILE).is_file():
        if starting := _starting(path):
            return starting["kind"]
        raise BadInput(
            f"{path}: is not a run: give the run_dir of toolkit.launch or toolkit.train, or the "
            "output_dir of toolkit.encode, toolkit.questions, toolkit.evaluate or a merge"
        )
    recipe = load_recipe(str(path / CONFIG_FILE))
    if isinstance(recipe, PipelineRecipe):
        raise BadInput(f"{path}: its stages have not been launched")
    return recipe.kind


def _standing(stage: Launched, *, run: str, now: float) -> Standing:
    standing = Standing(run, stage.name, stage.kind, jobs=stage.jobs)
    output = Path(stage.output)
    if stage.kind in SHARED:
        finished = _look_at_encoding(output, standing, now=now)
        standing.reason = read_reuse(output)
    elif stage.kind in LAST_FILE:
        finished = (output / LAST_FILE[stage.kind]).is_file()
        standing.last_sign_s = _last_written_s(output, now=now)
    else:
        finished = _look_at_training(output, standing, steps=stage.steps, now=now)
    starting = _starting(output)
    last = [*read_starts(output)[-1:], *([starting] if starting else [])]
    if last and str(last[-1]["job"]) not in standing.jobs and last[-1]["time"] > stage.time:
        job = str(last[-1]["job"])  # started since then by other means
        standing.jobs = () if job == LOCAL else (job,)
    if starting:
        standing.last_sign_s = _unheard_s(starting, now=now)
        standing.total = max(standing.total, starting["steps"])
        # A finished run may start again to do more steps than before.
        finished = finished and standing.done >= standing.total
    _ask(standing, finished=finished)
    if not (finished or standing.jobs) and (here := _job_here(stage)):
        state, ended = here
        # Somebody may have gone on by other means since it ended.
        if state == RUNNING or standing.last_sign_s is None or now - standing.last_sign_s <= ended:
            standing.state = state
    if is_running(standing.state):
        standing.heartbeats = _heartbeats(output, kind=stage.kind, now=now)
        if starting and not standing.reason:
            standing.reason, standing.last_sign_s = LOADING, None
    if standing.state not in (DONE, NOT_BEGUN) and _may_tell_errors(standing.state):
        ended_here = standing.state in (FAILED, STOPPED)
        standing.trouble = _trouble(Path(stage.logs), jobs=standing.jobs, any_line=ended_here)
    return standing


def _job_here(stage: Launched) -> tuple[str, float] | None:
    """The state of a stage that was launched on this machine, and when its job last wrote a log or
    its result (Unix seconds); None where the last launch has not come to it, or ran elsewhere.

    submitit names a job's files after its process; one that ended by itself, or by an error, has
    left a result."""
    logs, since = Path(stage.logs), 0.0
    if stage.node not in ("", socket.gethostname()):
        return None
    with contextlib.suppress(ValueError):
        since = datetime.datetime.fromisoformat(stage.time).timestamp()
    begun = {path: path.stat().st_mtime for path in logs.glob("*_submitted.pkl")}
    if not begun or begun[last := max(begun, key=lambda path: begun[path])] < since:
        return None
    job = last.name.partition("_")[0]
    written = [path.stat().st_mtime for path in logs.glob(f"{job}_*")]
    with contextlib.suppress(OSError):  # no such process
        # Another process may have the number by now.
        command = Path(f"/proc/{job}/cmdline").read_bytes()
        if b"submitit" in command and os.fsencode(logs.name) in command:
            return RUNNING, max(written)
    return FAILED if any(logs.glob(f"{job}_*_result.pkl")) else STOPPED, max(written)


def _last_written_s(output: Path, *, now: float) -> float | None:
    """Seconds since something was written in a directory or the directories in it."""
    paths = [*output.glob("*"), *output.glob("*/*")]
    times = []
    for path in paths:
        with contextlib.suppress(OSError):  # a temporary file that is gone
            times.append(path.stat().st_mtime)
    return max(0.0, now - max(times)) if times else None


def _starting(output: Path) -> _Starting | None:
    """The record of the process that loads the model, or did so when it was killed."""
    try:
        content = read_json(output / STARTING_FILE)
        return checked(content, _Starting, source=output / STARTING_FILE, advice="remove it")
    except BadInput:  # absent, removed while we looked, or unreadable
        return None


def _unheard_s(starting: _Starting, *, now: float) -> float:
    """Seconds since the loading process gave a sign; 0 for a process of this host that lives."""
    silence_s = now - datetime.datetime.fromisoformat(starting["time"]).timestamp()
    if starting["job"] != LOCAL or starting["node"] != socket.gethostname():
        return silence_s
    return 0.0 if Path(f"/proc/{starting['pid']}").exists() else max(silence_s, QUIET_S)


def _may_tell_errors(state: str) -> bool:
    """Whether errors in its logs still count. While a stage runs they are history, but some tasks
    of an array may have failed while others run."""
    words = set(re.findall("[A-Za-z_]+", state))
    return not is_running(state) or bool(words & (FINAL - {"COMPLETED"}))


def _look_at_training(output: Path, standing: Standing, *, steps: int | None, now: float) -> bool:
    standing.unit = "steps"
    if (output / CONFIG_FILE).is_file():
        recipe = load_recipe(str(output / CONFIG_FILE))
        if isinstance(recipe, TrainingRecipe):
            steps = recipe.train.steps if steps is None else steps
    standing.total = steps or 0
    rows = [row for row in read_metrics(output) if row["step"]]
    if rows:
        standing.done, standing.loss = rows[-1]["step"], rows[-1]["loss"]
        standing.epochs = epochs_of(rows[-1])
        recent = [row for row in rows[-RECENT:] if row.get("seconds")]
        if recent:
            standing.tokens_per_s = statistics.median(row["tokens_per_s"] for row in recent)
            each_s = statistics.median(row["seconds"] for row in recent)
            standing.left_s = (standing.total - standing.done) * each_s
        standing.last_sign_s = now - (output / METRICS_FILE).stat().st_mtime
    standing.restarts = max(0, len(read_starts(output)) - 1)
    whole = is_committed(output / ENCODER_DIR)
    return whole and standing.done >= standing.total


def _look_at_encoding(output: Path, standing: Standing, *, now: float) -> bool:
    standing.unit = "units"
    if not (output / PLAN_FILE).is_file():
        return False
    path = output / PLAN_FILE
    plan = checked(read_json(path), _Bounds, source=path, advice="remove it to begin anew")
    standing.total = len(plan["bounds"]) - 1
    times = sorted(path.stat().st_mtime for path in (output / UNIT_DIR).glob("*.json"))
    standing.done = len(times)
    if times:
        standing.last_sign_s = now - times[-1]
        recent = times[-RECENT:]
        if len(recent) > 1:
            each_s = (recent[-1] - recent[0]) / (len(recent) - 1)
            standing.left_s = (standing.total - standing.done) * each_s
    return (output / MANIFEST_FILE).is_file()


def _ask(standing: Standing, *, finished: bool) -> None:
    """Set the state: a stage whose output is whole is done, whatever became of its jobs."""
    states = [] if finished or not standing.jobs else job_states(standing.jobs)
    at_work = [one for one in states if not one.is_over and one.state != UNKNOWN]
    if finished:
        standing.state, standing.left_s = DONE, None
    elif states and (at_work or states[-1].state != UNKNOWN):
        shown: JobState = at_work[0] if at_work else states[-1]
        standing.state, standing.reason, standing.nodes = shown.state, shown.reason, shown.nodes
    elif standing.last_sign_s is None:
        gone = bool(states) and states[-1].reason == FORGOTTEN
        standing.state, standing.reason = (UNKNOWN, FORGOTTEN) if gone else (NOT_BEGUN, "")
    else:
        standing.state = RUNNING if standing.last_sign_s < QUIET_S else STOPPED
    if not is_running(standing.state):
        standing.left_s = standing.tokens_per_s = None


def _trouble(logs: Path, *, jobs: Sequence[str], any_line: bool) -> str:
    """The last line that reports an error in the logs of these jobs, or of the newest job if none
    is given; where no line does, the last one if `any_line`. Logs are named JOB_..."""
    if not logs.is_dir():
        return ""
    files = [path for path in logs.iterdir() if path.suffix in (".out", ".err")]
    files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    mine = set(jobs) or {path.name.partition("_")[0] for path in files[:1]}
    files = [path for path in files if path.name.partition("_")[0] in mine]
    tails = [(path, _tail(path)) for path in files[:16]]
    # What submitit says of an error is less than the last line of its traceback.
    for starts in ERRORS[:2] if any_line else ERRORS:
        for path, lines in tails:
            if errors := [line for line in lines if line.startswith(starts)]:
                return f"{errors[-1][:500]}  [{path.name}]"
    # A traceback first: the times of two files do not tell which was written last within a tick.
    for path, lines in sorted(tails, key=lambda it: TRACEBACK not in it[1]) if any_line else ():
        if said := [line for line in lines if line.strip() and not line.startswith("submitit ")]:
            return f"{said[-1][:500]}  [{path.name}]"
    return ""


def _tail(path: Path) -> list[str]:
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return handle.read().decode(errors="replace").splitlines()

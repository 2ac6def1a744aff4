"""Submission of jobs through submitit: sbatch scripts, or processes on this machine.

Knows the terms of SLURM and submitit. Refuses to know what a job does: a job is a callable.
"""

import contextlib
import dataclasses
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit import LocalExecutor, SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError
from submitit.slurm.slurm import _make_sbatch_string

from toolkit.base.errors import BadInput
from toolkit.cluster.preempt import CHAIN_VARIABLE
from toolkit.cluster.queue import FORGOTTEN, SILENT, job_state
from toolkit.cluster.site import OPTIONS, Option, check_option

SIGNAL_DELAY_S = 120
MAX_RESTARTS = 1000
POLL_S = 1.0
MOST_UNHEARD = 30  # queries in a row that SLURM may leave unanswered, for example while it restarts
RULE = "-" * 22  # submitit puts one above and one below a traceback
UNSAFE = "%\\"  # characters that sbatch interprets in a path
_NAME = Option("the name of a job")


@dataclasses.dataclass(frozen=True)
class Resources:
    """What one job requests. `options` are values for `site.OPTIONS`. `mem_gib` is per node and
    `mem_per_gpu_gib` per GPU; sbatch takes one of them only. With `array` above 1 the job is an
    array of that many equal tasks, each with all of these resources; at most
    `array_throttle` tasks run at a time. `chained` is the job's number in a chain, from 1, or 0: a
    chained job is not requeued, since the next job waits already."""

    name: str
    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int
    time_min: int
    mem_gib: int | None = None
    mem_per_gpu_gib: int | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    array: int = 1
    array_throttle: int | None = None
    chained: int = 0

    def __post_init__(self) -> None:
        check_option("name", self.name, option=_NAME)
        for name, text in self.options.items():
            check_option(name, text, option=OPTIONS[name])
        for field in (
            *("nodes", "tasks_per_node", "cpus_per_task", "time_min", "mem_gib"),
            *("mem_per_gpu_gib", "array", "array_throttle"),
        ):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise BadInput(f"{field} is {value}: at least 1")


class NoSinfo(BadInput):
    """SLURM cannot be asked from here. The message lacks what to do, which the caller knows."""


def has_slurm() -> bool:
    """Whether this machine can submit jobs, for which submitit needs both sbatch and srun."""
    return all(shutil.which(program) for program in ("sbatch", "srun"))


def gpus_of_partition(partition: str | None) -> int:
    """The largest number of GPUs that sinfo gives for any node of the partition (None: of the
    default partition). Raises `NoSinfo` where it gives no answer."""
    if partition is not None:
        check_option("partition", partition, option=OPTIONS["partition"])
    # sinfo marks the default partition by a star at the end of its name.
    command = ["sinfo", "--noheader", "--format=%P|%G", *(["-p", partition] if partition else [])]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except OSError as error:
        raise NoSinfo(f"sinfo cannot be run ({error.strerror})") from error
    except subprocess.CalledProcessError as error:
        why = " ".join(error.stderr.split())
        raise NoSinfo(f"sinfo failed ({why})") from error
    if not answer.stdout.strip():  # sinfo succeeds for a name that it does not know
        raise BadInput(f"partition {partition!r}: has no nodes, says sinfo; see sinfo --summarize")
    lines = [line.partition("|") for line in answer.stdout.splitlines()]
    default = [gres for name, _, gres in lines if name.strip().endswith("*")]
    here = default if default and partition is None else [gres for _, _, gres in lines]
    counts = re.findall(r"gpu(?::[^:,(\s]+)?:(\d+)", "\n".join(here))
    return max((int(count) for count in counts), default=0)


def gpus_here() -> int:
    """The number of NVIDIA GPUs of this machine, counted by their device files."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def sbatch_text(
    resources: Resources, *, folder: Path, after: str | None, setup: Sequence[str]
) -> str:
    """The sbatch script of a job, exactly as `submit_slurm` hands it to sbatch."""
    parameters = _slurm_parameters(resources, after=after, setup=setup)
    if resources.array > 1:
        parameters["map_count"] = resources.array
    python, where = shlex.quote(sys.executable), shlex.quote(str(folder))
    command = f"{python} -u -m submitit.core._submit {where}"
    text: str = _make_sbatch_string(command=command, folder=folder, **parameters)
    return text


def submit_slurm(
    resources: Resources,
    *,
    job: Callable[[], Any],
    folder: Path,
    after: str | None,
    setup: Sequence[str],
) -> str:
    """Submit a job and return its id. It waits for `after`, a dependency such as "afterok:17".

    Raises `BadInput` with the message of sbatch when sbatch refuses the job.
    """
    executor = _slurm_executor(resources, folder=folder, after=after, setup=setup)
    with _sbatchs_words(resources):
        if resources.array == 1:
            return str(executor.submit(job).job_id)
        with executor.batch():
            tasks = [executor.submit(job) for _ in range(resources.array)]
    return str(tasks[0].job_id).partition("_")[0]


def run_there(
    resources: Resources,
    *,
    job: Callable[[], Any],
    folder: Path,
    after: str | None,
    setup: Sequence[str],
    show: Callable[[str], None],
) -> None:
    """Submit a job, which waits for the dependency `after`, and wait for its end; pass what its
    first rank prints to `show`.

    Raises `BadInput` with the errors that its ranks have printed, or `JobFailed` when it ended
    without success and without such an error.
    """
    executor = _slurm_executor(resources, folder=folder, after=after, setup=setup)
    with _sbatchs_words(resources):
        running = executor.submit(job)
    job_id, shown, before, unheard = str(running.job_id), 0, "", 0
    try:
        while True:
            state = job_state(job_id)
            shown += _show_new(running.paths.stdout, seen=shown, show=show)
            unheard = unheard + 1 if state.reason == SILENT else 0
            if state.is_over or state.reason == FORGOTTEN:
                break
            if unheard > MOST_UNHEARD:
                raise JobFailed(f"{SILENT}; job {job_id} may go on: scancel {job_id} ends it")
            if state.state != before:
                before = state.state
                show(f"job {job_id}: {state.state}" + f" ({state.reason})" * bool(state.reason))
            time.sleep(POLL_S)
    except KeyboardInterrupt as error:
        raise JobFailed(f"job {job_id} goes on without this; scancel {job_id} ends it") from error
    if state.state != "COMPLETED":
        logs = sorted(folder.glob(f"{job_id}_*.out"))
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
        if errors := dict.fromkeys(line for line in lines if line.startswith("error: ")):
            raise BadInput("; ".join(line.removeprefix("error: ") for line in errors))
        raise JobFailed(f"job {job_id} ended {state.state}; logs: {folder}")


def _slurm_executor(
    resources: Resources, *, folder: Path, after: str | None, setup: Sequence[str]
) -> SlurmExecutor:
    check_folder(folder, what="folder of logs")
    make_private(folder)
    # By default submitit gives up a job that reached its time limit three times; a long run does so
    # more often.
    executor = SlurmExecutor(folder=folder, max_num_timeout=MAX_RESTARTS)
    executor.update_parameters(**_slurm_parameters(resources, after=after, setup=setup))
    return executor


@contextlib.contextmanager
def _sbatchs_words(resources: Resources) -> Iterator[None]:
    """Turn a refusal of sbatch into `BadInput` with sbatch's own message."""
    try:
        # submitit prints that message on stderr besides raising it: once is enough.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except (FailedJobError, FailedSubmissionError) as error:
        why = "; ".join(line.removeprefix("sbatch: error: ") for line in str(error).splitlines())
        raise BadInput(f"sbatch refused the job {resources.name}: {why}") from error


def run_here(
    resources: Resources, *, job: Callable[[], Any], folder: Path, show: Callable[[str], None]
) -> None:
    """Run a job on this machine to its end; pass what its first rank prints to `show`.

    Raises `BadInput` if the job did, and `JobFailed` when it failed otherwise.
    """
    make_private(folder)
    executor = LocalExecutor(folder=folder)
    executor.update_parameters(
        tasks_per_node=resources.tasks_per_node,
        gpus_per_node=resources.gpus_per_node,
        timeout_min=resources.time_min,
    )
    running = executor.submit(job)
    shown = 0
    while True:
        done = running.done()
        shown += _show_new(running.paths.stdout, seen=shown, show=show)
        if done:
            break
        time.sleep(0.2)
    if error := running.exception():
        _, marker, message = _last_line(error).partition(f"{BadInput.__module__}.BadInput: ")
        if marker:
            raise BadInput(message)
        why = _last_line(error)
        if not isinstance(error, FailedJobError) and isinstance(error, UncompletedJobError):
            # Its last line is that of the job's output.
            why = (
                "its process ended without a result: killed (often for want of memory), or crashed"
            )
        raise JobFailed(f"{resources.name} failed: {why}; log: {running.paths.stderr}")


def check_folder(folder: Path, *, what: str) -> None:
    """Raise `BadInput` for a folder whose logs sbatch would write elsewhere. The path is part of
    #SBATCH and srun lines, which a line break would end. In file names, sbatch and submitit replace
    %j, %u and the like by job numbers and user names, and submitit cannot write a plain %. A
    backslash turns these replacements off for the whole path."""
    text = str(folder)
    if not text.isprintable() or set(text) & set(UNSAFE):
        raise BadInput(f"{what} {text!r}: use a path without % and \\ and line breaks")


def make_private(folder: Path) -> None:
    """Make a job's folder, readable and writable by its owner only: submitit unpickles the job from
    there, and logs may hold private data. Raises `BadInput` for a folder of another user."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise BadInput(f"{folder}: belongs to another user; choose another run_dir")
    folder.chmod(0o700)


class JobFailed(RuntimeError):
    """A job ended without success; the message says where its logs are or how to end it."""


def _slurm_parameters(
    resources: Resources, *, after: str | None, setup: Sequence[str]
) -> dict[str, Any]:
    extra: dict[str, Any] = {"kill-on-invalid-dep": "yes"}
    per_gpu = resources.mem_per_gpu_gib
    extra["no-requeue" if resources.chained else "requeue"] = True
    if resources.chained:
        setup = [f"export {CHAIN_VARIABLE}={resources.chained}", *setup]
    if "reservation" in resources.options:  # submitit has no parameter for it
        extra["reservation"] = resources.options["reservation"]
    optional = {
        **{key: text for key, text in resources.options.items() if key != "reservation"},
        "mem": f"{resources.mem_gib}G" if resources.mem_gib is not None else None,
        "mem_per_gpu": f"{per_gpu}G" if per_gpu is not None else None,
        "gpus_per_node": resources.gpus_per_node or None,
        "dependency": after,
    }
    return {
        "job_name": resources.name,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "time": resources.time_min,
        "signal_delay_s": SIGNAL_DELAY_S,
        "setup": list(setup),
        "array_parallelism": resources.array_throttle or resources.array,
        "stderr_to_stdout": True,
        # Since SLURM 22.05 srun does not take --cpus-per-task over from sbatch.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={resources.cpus_per_task}"],
        "additional_parameters": extra,
        "wckey": None,  # submitit would set "submitit", a key that sites do not know
        **{key: value for key, value in optional.items() if value is not None},
    }


def _show_new(path: Path, *, seen: int, show: Callable[[str], None]) -> int:
    """Show the whole lines after byte `seen`; returns how many bytes were shown."""
    if not path.is_file():
        return 0
    with path.open("rb") as handle:
        handle.seek(seen)
        new = handle.read()
    whole = new[: new.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        if not line.startswith("submitit "):
            show(line)
    return len(whole)


def _last_line(error: BaseException) -> str:
    """The last line of an error. submitit puts the traceback between two rules, and after them
    where to read more."""
    parts = str(error).split(RULE)
    text = parts[1] if len(parts) == 3 else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip(" -\t")]
    return lines[-1] if lines else repr(error)

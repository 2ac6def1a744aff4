"""What SLURM says about jobs: state and reason, as long as it or its accounting remembers them.

Knows scontrol and sacct. Refuses to know what the jobs do.
"""

import dataclasses
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence

QUERY_S = 20.0
FINAL = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY")
) | {"PREEMPTED", "TIMEOUT"}
UNKNOWN = "UNKNOWN"
FORGOTTEN, SILENT = "SLURM does not know it any more", "SLURM does not answer"
# Plain words for the reasons that SLURM only names, with what a person would ask next.
REASONS = {
    "Dependency": "waits for the job before it",
    "DependencyNeverSatisfied": "the job before it failed",
    "Priority": "others come first",
    "Resources": "waits for nodes",
    "BeginTime": "was requeued a moment ago",
    "JobArrayTaskLimit": "as many run as the throttle allows",
    "QOSMaxJobsPerUserLimit": "you have as many running as the QoS allows",
    "AssocGrpGRES": "the account has as many GPUs as it may",
    "ReqNodeNotAvail": "a node that it needs is down, drained or reserved",
    "PartitionTimeLimit": "asks for more time than the partition allows",
    "PartitionNodeLimit": "asks for more nodes than the partition allows",
    "launch failed requeued held": "could not be started and is held: scontrol release it",
}

# The reasons that still mean something after a job has ended.
ENDED = {
    "Dependency": "cancelled while it waited for the job before it",
    "DependencyNeverSatisfied": REASONS["DependencyNeverSatisfied"],
}


@dataclasses.dataclass(frozen=True)
class JobState:
    """The state of one job, or of all tasks of an array together: `state` in SLURM's words (for an
    array with numbers, "RUNNING 3, PENDING 5"), `reason` in plain words, `nodes` as a node list of
    SLURM."""

    job: str
    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the job, with all tasks of an array, has ended for good."""
        return all(word in FINAL for word in re.findall("[A-Z_]+", self.state))


def job_state(job: str) -> JobState:
    """What SLURM, or its accounting, knows about a job; state UNKNOWN if neither knows it."""
    lines, error = _ask("scontrol", "show", "job", "-o", job)
    records = [_record(line) for line in lines]
    if not records:
        # -X leaves out the steps of the job. On a site without accounting the answer is empty.
        fields = "State,Reason,NodeList,ExitCode"
        answer, _ = _ask("sacct", "-X", "-n", "-P", "-j", job, "-o", fields)
        records = [dict(zip(_FIELDS, line.split("|"), strict=False)) for line in answer]
        for record in records:
            if _lost_its_turn(record):
                record["Reason"] = "DependencyNeverSatisfied"
    if not records:
        return JobState(job, UNKNOWN, FORGOTTEN if "Invalid job id" in error else SILENT)
    states: Counter[str] = Counter()
    for record in records:
        states[record.get("JobState", UNKNOWN).partition(" ")[0]] += _num_tasks(record)
    shown = ", ".join(f"{name} {count}" for name, count in states.items())
    reasons = {_in_words(record) for record in records} - {""}
    nodes = {record.get("NodeList", "") for record in records} - {"", "(null)", "None assigned"}
    return JobState(
        job,
        next(iter(states)) if len(records) == 1 else shown,
        "; ".join(sorted(reasons)),
        ",".join(sorted(nodes)),
    )


_FIELDS = ("JobState", "Reason", "NodeList", "ExitCode")


def _ask(*command: str) -> tuple[list[str], str]:
    """The lines that a command printed, and what it printed on stderr."""
    if not shutil.which(command[0]):
        return [], f"no {command[0]}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_S, check=False)
    except subprocess.TimeoutExpired:
        return [], "timed out"
    answer = "" if done.returncode else done.stdout
    return [line for line in answer.splitlines() if line.strip()], done.stderr


def _record(line: str) -> dict[str, str]:
    """The fields that we use from a line of scontrol; values of other fields may contain blanks."""
    names = "|".join((*_FIELDS, "ArrayTaskId"))
    return dict(re.findall(rf"(?:^|\s)({names})=(.*?)(?=\s\w[\w/:]*=|$)", line))


def _num_tasks(record: Mapping[str, str]) -> int:
    """How many tasks of an array a record stands for. Those that have not begun share a record:
    4-31%4 are 28 tasks, of which at most four run at a time."""
    count = 0
    for part in record.get("ArrayTaskId", "").partition("%")[0].split(","):
        numbers = [int(number) for number in re.findall(r"\d+", part)] or [0]
        last = numbers[1] if len(numbers) > 1 else numbers[0]
        step = numbers[2] if len(numbers) > 2 else 1
        count += (last - numbers[0]) // step + 1
    return count


def _lost_its_turn(record: Mapping[str, str]) -> bool:
    """Whether accounting's record is of a job that SLURM itself cancelled before it had a node.

    If a person cancels a job, its state is "CANCELLED by 1000" instead. The reason is the last one
    that accounting was told; it is "None" if the job before it failed earlier than that.
    """
    facts = (record.get("JobState"), record.get("Reason"), record.get("NodeList"))
    return facts in {("CANCELLED", why, "None assigned") for why in ("Dependency", "None")}


def _in_words(record: Mapping[str, str]) -> str:
    """Why a job waits, or how it ended; empty if there is nothing to say. For a job that has ended,
    SLURM may still give the reason why it waited. A failed job has an exit code and a signal, as in
    2:0 and 0:9."""
    state, reason = record.get("JobState", "").partition(" ")[0], record.get("Reason", "")
    if state == "FAILED":
        code, _, number = record.get("ExitCode", "").partition(":")
        return f"signal {number}" if number not in ("", "0") else f"exit code {code}"
    plain = reason.replace("_", " ")
    words = REASONS.get(reason) or REASONS.get(plain)
    if state in FINAL and words:
        return ENDED.get(reason, "")
    return words or ("" if reason == "None" else plain)


def job_states(jobs: Sequence[str]) -> list[JobState]:
    """The `job_state` of each job, in the order of `jobs`."""
    return [job_state(job) for job in jobs]

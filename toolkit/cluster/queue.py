"""What SLURM says of jobs: state and reason, while it remembers them or its accounting does.

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
# In words, where SLURM's are not: what a person would ask next.
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

# Those that tell something of a job that has ended.
ENDED = {
    "Dependency": "cancelled while it waited for the job before it",
    "DependencyNeverSatisfied": REASONS["DependencyNeverSatisfied"],
}


@dataclasses.dataclass(frozen=True)
class JobState:
    """One job, or all tasks of an array in one line: `state` as SLURM has it ("RUNNING 3, PENDING
    5" of an array), `reason` in words, `nodes` as a list of SLURM's."""

    job: str
    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing of it will run any more."""
        return all(word in FINAL for word in re.findall("[A-Z_]+", self.state))


def job_state(job: str) -> JobState:
    """What SLURM, or its accounting, knows of a job; the state UNKNOWN where neither does."""
    lines, error = _ask("scontrol", "show", "job", "-o", job)
    records = [_record(line) for line in lines]
    if not records:
        # With its steps left out; there is nothing without accounting, and then no line either.
        fields = "State,Reason,NodeList,ExitCode"
        told, _ = _ask("sacct", "-X", "-n", "-P", "-j", job, "-o", fields)
        records = [dict(zip(_FIELDS, line.split("|"), strict=False)) for line in told]
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
    """The lines of its answer, and what it said instead."""
    if not shutil.which(command[0]):
        return [], f"no {command[0]}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_S, check=False)
    except subprocess.TimeoutExpired:
        return [], "timed out"
    answer = "" if done.returncode else done.stdout
    return [line for line in answer.splitlines() if line.strip()], done.stderr


def _record(line: str) -> dict[str, str]:
    """The fields that we want of a line of scontrol, whose values may hold blanks elsewhere."""
    names = "|".join((*_FIELDS, "ArrayTaskId"))
    return dict(re.findall(rf"(?:^|\s)({names})=(.*?)(?=\s\w[\w/:]*=|$)", line))


def _num_tasks(record: Mapping[str, str]) -> int:
    """Of an array, those that have not begun share a record: 4-31%4 are 28, at most four a time."""
    found = 0
    for part in record.get("ArrayTaskId", "").partition("%")[0].split(","):
        numbers = [int(number) for number in re.findall(r"\d+", part)] or [0]
        last = numbers[1] if len(numbers) > 1 else numbers[0]
        step = numbers[2] if len(numbers) > 2 else 1
        found += (last - numbers[0]) // step + 1
    return found


def _lost_its_turn(record: Mapping[str, str]) -> bool:
    """Whether accounting's record is of a job that SLURM itself cancelled before it had a node.

    A person's cancellation reads "CANCELLED by 1000" there. The reason is what the job last told
    accounting: none at all, where the job before it failed sooner than that.
    """
    told = (record.get("JobState"), record.get("Reason"), record.get("NodeList"))
    return told in {("CANCELLED", why, "None assigned") for why in ("Dependency", "None")}


def _in_words(record: Mapping[str, str]) -> str:
    """Why a job waits, or how it ended. Of one that has ended, SLURM may still tell what it waited
    for; of one that failed it has the code and the signal, as in 2:0 and 0:9."""
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
    """Of each, in order."""
    return [job_state(job) for job in jobs]

"""What SLURM says of jobs: state and reason, while it remembers them or its accounting does.

Knows scontrol and sacct. Refuses to know what the jobs do.
"""

import dataclasses
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence

QUERY_S = 20.0
FINAL = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY")
) | {"PREEMPTED", "TIMEOUT"}
UNKNOWN = "UNKNOWN"
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
    records = [_record(line) for line in _lines("scontrol", "show", "job", "-o", job)]
    if not records:
        # With its steps left out; there is nothing without accounting, and then no line either.
        told = _lines("sacct", "-X", "-n", "-P", "-j", job, "-o", "State,Reason,NodeList")
        records = [dict(zip(_FIELDS, line.split("|"), strict=False)) for line in told]
    if not records:
        return JobState(job, UNKNOWN, "SLURM does not know it any more")
    states = Counter(record.get("JobState", UNKNOWN).partition(" ")[0] for record in records)
    shown = ", ".join(f"{name} {count}" for name, count in states.items())
    reasons = {_in_words(record.get("Reason", "")) for record in records} - {""}
    nodes = {record.get("NodeList", "") for record in records} - {"", "(null)", "None assigned"}
    return JobState(
        job,
        next(iter(states)) if len(records) == 1 else shown,
        "; ".join(sorted(reasons)),
        ",".join(sorted(nodes)),
    )


_FIELDS = ("JobState", "Reason", "NodeList")


def _lines(*command: str) -> list[str]:
    if not shutil.which(command[0]):
        return []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_S, check=False)
    except subprocess.TimeoutExpired:
        return []
    if done.returncode:
        return []
    return [line for line in done.stdout.splitlines() if line.strip()]


def _record(line: str) -> dict[str, str]:
    """The fields that we want of a line of scontrol, whose values may hold blanks elsewhere."""
    pairs = re.findall(rf"(?:^|\s)({'|'.join(_FIELDS)})=(.*?)(?=\s\w[\w/:]*=|$)", line)
    return dict(pairs)


def _in_words(reason: str) -> str:
    if reason in ("", "None", "NonZeroExitCode"):
        return ""
    plain = reason.replace("_", " ")
    return REASONS.get(reason) or REASONS.get(plain) or plain


def job_states(jobs: Sequence[str]) -> list[JobState]:
    """Of each, in order."""
    return [job_state(job) for job in jobs]

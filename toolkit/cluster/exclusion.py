"""Leaves a node that has failed out of the next start of its job and of the jobs chained to it.

Knows scontrol, sinfo and squeue. Refuses to know what a failure is. SLURM lets a user change the
excluded nodes only while a job is pending. So this runs as a process of its own beside the job that
is about to be requeued, and repeats its request until SLURM accepts it. There are limits: at most a
quarter of a partition is excluded, counting what the user has excluded, and a job always keeps
enough nodes to run on. No torch.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from toolkit.base.console import say_beside
from toolkit.cluster.topology import expand_node_list

LARGEST_PART = 4  # one in four nodes of a partition may be left out
PATIENCE_S, RETRY_S, QUERY_S = 20.0, 0.2, 20.0
UP = ("idle", "mixed", "allocated", "completing", "planned")
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from toolkit.cluster import exclusion; exclusion.main(sys.argv[2:])"
)


def exclusion_command(environ: Mapping[str, str]) -> list[str]:
    """The command that leaves nodes out of the next start of this SLURM job; the caller appends
    their names. Empty outside a SLURM job."""
    job = environ.get("SLURM_JOB_ID")
    if not job or not shutil.which("scontrol"):
        return []
    root = str(Path(__file__).resolve().parents[2])
    return [sys.executable, "-I", "-S", "-c", _START, root, job]


def excluded_nodes(job: str) -> str:
    """The nodes that a job leaves out, as a node list of SLURM; empty if SLURM does not say."""
    return _list(_record(job), "ExcNodeList")


def more_to_exclude(
    failed: Sequence[str], *, excluded: Collection[str], up: Collection[str], total: int, wants: int
) -> tuple[list[str], str]:
    """Which of the `failed` nodes may be left out besides the `excluded` ones, and why the rest may
    not. The partition has `total` nodes; the job `wants` that many of those in `up`, which are up
    and have the features that it asks for."""
    chosen: list[str] = []
    for node in failed:
        if node in excluded or node in chosen:
            continue
        num_out = len(excluded) + len(chosen)
        if num_out + 1 > total // LARGEST_PART:
            return chosen, f"{num_out} of {total} are left out already, at most {total // 4} may be"
        if len(set(up) - {*excluded, *chosen, node}) < wants:
            return chosen, f"the job wants {wants} and would not find that many"
        chosen.append(node)
    return chosen, ""


def exclude(job: str, *, failed: Sequence[str]) -> None:
    """Leave the failed nodes out of the next start of `job`, if it may be requeued, and of all jobs
    that are chained to it."""
    record = _record(job)
    if record.get("Requeue") == "1":
        _exclude_from(job, failed=failed, record=record)
    for follower in _chained_to(job):
        _exclude_from(follower, failed=failed, record=_record(follower))


def main(argv: Sequence[str]) -> None:
    """Run as a process: `argv` is the job and the nodes that have failed. The parent starts it with
    TERM blocked, because SLURM sends TERM to all processes when the job ends."""
    exclude(argv[0], failed=argv[1:])


def _exclude_from(job: str, *, failed: Sequence[str], record: Mapping[str, str]) -> None:
    before = _list(record, "ExcNodeList")
    known = expand_node_list(before) if before else []
    if any(_list(record, name) for name in ("Reservation", "ReqNodeList")):
        chosen, why = list[str](), "the job asks for particular nodes"
    else:
        up, total = _nodes_for(record)
        wants = int(re.match(r"\d*", record.get("NumNodes", ""))[0] or 1)  # type: ignore[index]
        chosen, why = more_to_exclude(failed, excluded=known, up=up, total=total, wants=wants)
    rest = [node for node in failed if node not in (*known, *chosen)]
    if rest:
        _say(f"job {job}: {', '.join(rest)} is not left out of its next start: {why}")
    if not chosen:
        return
    after = ",".join([*([before] if before else []), *chosen])
    # SLURM refuses this as long as the job runs, and accepts it once the job is pending again.
    until = time.monotonic() + PATIENCE_S
    while error := _run("scontrol", "update", f"JobId={job}", f"ExcNodeList={after}")[1]:
        if time.monotonic() > until:
            _say(f"job {job}: {', '.join(chosen)} could not be left out: {error}")
            return
        time.sleep(RETRY_S)
    _say(f"job {job}: {', '.join(chosen)} is left out of its next start")


def _nodes_for(record: Mapping[str, str]) -> tuple[set[str], int]:
    """The nodes of a job's partition that are up and have the features that the job asks for, and
    the number of all nodes of the partition."""
    partition = ["-p", _list(record, "Partition")] if _list(record, "Partition") else []
    wanted = set(re.findall(r"[\w.-]+", _list(record, "Features")))
    up, names = set(), set()
    for line in _run("sinfo", "-h", "-N", *partition, "-o", "%N|%T|%b")[0].splitlines():
        name, state, features = line.split("|")
        names.add(name)
        # A star behind the state, as in "idle*", means that the node does not answer.
        if state in UP and wanted <= set(features.split(",")):
            up.add(name)
    return up, len(names)


def _chained_to(job: str) -> list[str]:
    """The user's jobs that wait for the end of this job, directly or through others."""
    lines = _run("squeue", "-h", "--me", "-t", "PENDING", "-o", "%A|%E")[0].splitlines()
    waits = dict(line.split("|", 1) for line in lines)
    followers: list[str] = []
    while following := [
        other
        for other, what in waits.items()
        if re.search(rf"\bafterany:{[job, *followers][-1]}\b", what) and other not in followers
    ]:
        followers += following
    return followers


def _record(job: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S*)", _run("scontrol", "show", "job", "-o", job)[0]))


def _list(record: Mapping[str, str], name: str) -> str:
    value = record.get(name, "")
    return "" if value == "(null)" else value


def _run(*command: str) -> tuple[str, str]:
    """What a command printed, and why it failed (empty if it succeeded)."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", " ".join(str(error).split())
    failed = f"exit code {done.returncode}" if done.returncode else ""
    return done.stdout, failed and (" ".join(done.stderr.split()) or failed)


def _say(line: str) -> None:
    say_beside(f"watchdog: {line}")

"""Where a process stands among the processes of its job: one table of variables per launcher.

Knows the environment variables of torchrun, submitit, MPI and SLURM. Refuses to know what the
ranks do, and talks to none of them: every rank works out the same address and port by itself.

Seen on SLURM 22.05:
- A batch script has SLURM_PROCID=0, SLURM_LOCALID=0, SLURM_NODEID=0 and SLURM_NTASKS too, by which
  it would look like rank 0 of many. Only a step made by srun has SLURM_STEP_ID.
- `sbatch` called inside a step passes the step's SLURM_STEP_* on to the new batch script. Always
  start Python with srun there (slurm/*.sh and submitit do): srun overwrites them all.
- `mpiexec` in a job starts one helper per node with srun, and its ranks inherit SLURM_PROCID of
  the helper. That is why MPI's own variables are looked for before those of SLURM.
"""

import itertools
import math
import os
import re
import socket
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.errors import BadInput

LOCALHOST = "127.0.0.1"
LOCAL = "local"  # the job of a process that no scheduler has started
# All below 32768, where the kernel's ports for outgoing connections begin: one could be ours.
FIRST_PORT, NUM_PORTS = 20000, 12000
MAX_NODES = 65536  # SLURM's own limit; refuses a damaged list such as n[1-9999999999]


@dataclass(frozen=True)
class Topology:
    """One process of a job: `rank` of `world_size`, `local_rank` of `local_world_size` on a node.

    `main_address` and `main_port` are where rank 0 listens. `launcher` is one of torchrun,
    submitit, mpi, slurm, alone. `job_id` is "local" outside of a scheduler.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    num_nodes: int
    node_name: str
    main_address: str
    main_port: int
    launcher: str
    job_id: str


@dataclass(frozen=True)
class _Launcher:
    """The variables of one launcher; it started this process if all of `marks` are set."""

    name: str
    marks: tuple[str, ...]
    rank: str
    world_size: str
    local_rank: str
    local_world_size: str  # a number, or SLURM's list of tasks per node
    num_nodes: str | None = None


# Tried in this order: the innermost launcher first, because each passes on its parents' variables.
_LAUNCHERS = (
    _Launcher(
        name="torchrun",
        marks=("RANK", "WORLD_SIZE"),
        rank="RANK",
        world_size="WORLD_SIZE",
        local_rank="LOCAL_RANK",
        local_world_size="LOCAL_WORLD_SIZE",
        num_nodes="GROUP_WORLD_SIZE",
    ),
    _Launcher(
        name="submitit",
        marks=("SUBMITIT_LOCAL_GLOBALID",),
        rank="SUBMITIT_LOCAL_GLOBALID",
        world_size="SUBMITIT_LOCAL_NTASKS",
        local_rank="SUBMITIT_LOCAL_LOCALID",
        local_world_size="SUBMITIT_LOCAL_NTASKS",  # it runs on one node only
        num_nodes="SUBMITIT_LOCAL_JOB_NUM_NODES",
    ),
    _Launcher(
        name="mpi",  # Open MPI's mpirun
        marks=("OMPI_COMM_WORLD_RANK",),
        rank="OMPI_COMM_WORLD_RANK",
        world_size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_world_size="OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Launcher(
        name="mpi",  # mpiexec of MPICH and its kin; `srun --mpi=pmi2` sets PMI_RANK but no MPI_*
        marks=("PMI_RANK", "MPI_LOCALRANKID"),
        rank="PMI_RANK",
        world_size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        local_world_size="MPI_LOCALNRANKS",
    ),
    _Launcher(
        name="slurm",
        marks=("SLURM_STEP_ID", "SLURM_PROCID"),
        rank="SLURM_PROCID",
        # Not SLURM_NTASKS, which is the job's in a batch script and under `salloc`.
        world_size="SLURM_STEP_NUM_TASKS",
        local_rank="SLURM_LOCALID",
        local_world_size="SLURM_STEP_TASKS_PER_NODE",
        num_nodes="SLURM_STEP_NUM_NODES",
    ),
    _Launcher(
        name="mpi",  # another PMI process manager; it gives no local rank, so one process only
        marks=("PMI_RANK", "PMI_SIZE"),
        rank="PMI_RANK",
        world_size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        local_world_size="MPI_LOCALNRANKS",
    ),
)


def resolves(host: str) -> bool:
    """Whether a host name has an address here."""
    try:
        return bool(socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return False


def detect(
    environ: Mapping[str, str], *, can_resolve: Callable[[str], bool] = resolves
) -> Topology:
    """This process's place, from the variables of the launcher that started it.

    Raises `BadInput` that names the variable and its value when they contradict each other.
    """
    launcher = next((it for it in _LAUNCHERS if all(m in environ for m in it.marks)), None)
    rank, world_size, local_rank, local_world_size, num_nodes = 0, 1, 0, 1, 1
    name, one_node = "alone", True
    if launcher is not None:
        name = launcher.name
        world_size = _integer(environ, launcher.world_size, least=1)
        rank = _integer(environ, launcher.rank, below=(world_size, launcher.world_size))
        local_rank, local_world_size = _local_place(environ, launcher, world_size=world_size)
        one_node = local_world_size == world_size
        num_nodes = math.ceil(world_size / local_world_size)  # assumes equal nodes
        if launcher.num_nodes is not None and launcher.num_nodes in environ:
            num_nodes = _integer(environ, launcher.num_nodes, least=1)
    return Topology(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        num_nodes=num_nodes,
        node_name=environ.get("SLURMD_NODENAME") or socket.gethostname(),
        main_address=_main_address(
            environ, launcher=name, one_node=one_node, can_resolve=can_resolve
        ),
        main_port=_main_port(environ, launcher=name, one_node=one_node),
        launcher=name,
        job_id=environ.get("SLURM_JOB_ID") or LOCAL,
    )


def expand_node_list(text: str) -> list[str]:
    """The host names of a SLURM node list, in its order: `n[08-10],gpu-a1` is four names.

    Does what `scontrol show hostnames` does, which containers often lack. Several brackets in a
    name give all combinations, and the rightmost varies fastest. Raises `BadInput` for anything
    else.
    """
    names: list[str] = []
    for word in _split_outside_brackets(text):
        # ["gpu", "1-2", "x", "3,5", ""]: every second piece is the inside of a bracket.
        pieces = re.split(r"\[([^\[\]]*)\]", word)
        if not word or any(c in "[]" for piece in pieces[::2] for c in piece):
            raise BadInput(f"node list {text!r}: write names such as n[1-3,7],gpu-a1")
        choices = [
            _expand_ranges(piece, source=text) if index % 2 else [piece]
            for index, piece in enumerate(pieces)
        ]
        if len(names) + math.prod(map(len, choices)) > MAX_NODES:
            raise BadInput(f"node list {text!r}: more than {MAX_NODES} names")
        names += ["".join(parts) for parts in itertools.product(*choices)]
    return names


def array_task(environ: Mapping[str, str]) -> tuple[int, int]:
    """The index of this task in its SLURM array, from 0, and the number of tasks; (0, 1) if none.

    Raises `BadInput` for an array such as 1,5,7, whose indices SLURM does not pass on. A job that
    is submitted from inside an array task inherits these variables: unset them before sbatch.
    """
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return 0, 1
    count = _integer(environ, "SLURM_ARRAY_TASK_COUNT", least=1)
    first = _integer(environ, "SLURM_ARRAY_TASK_MIN")
    task = _integer(environ, "SLURM_ARRAY_TASK_ID", least=first)
    step = 1
    if "SLURM_ARRAY_TASK_STEP" in environ:
        step = _integer(environ, "SLURM_ARRAY_TASK_STEP", least=1)
    index, rest = divmod(task - first, step)
    if rest or index >= count:
        raise _bad(
            environ,
            "SLURM_ARRAY_TASK_ID",
            f"one of {count} tasks from {first} by {step}: use an even --array such as 0-3",
        )
    return index, count


def worker_of(topology: Topology, *, environ: Mapping[str, str]) -> tuple[int, int]:
    """The number of this worker, from 0, and the number of all workers, counted over all ranks of
    all tasks of a SLURM array."""
    index, count = array_task(environ)
    return index * topology.world_size + topology.rank, count * topology.world_size


def ranks_of_job(environ: Mapping[str, str]) -> int:
    """The number of ranks that srun will start from this batch script; outside a batch script, the
    number of ranks of the job that this process belongs to."""
    if "SLURM_JOB_ID" not in environ or "SLURM_STEP_ID" in environ:
        return detect(environ).world_size
    if "SLURM_NTASKS" in environ:
        return _integer(environ, "SLURM_NTASKS", least=1)
    given = {"SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "1", **environ}
    names = ("SLURM_NNODES", "SLURM_NTASKS_PER_NODE")
    return math.prod(_integer(given, name, least=1) for name in names)


def _local_place(
    environ: Mapping[str, str], launcher: _Launcher, *, world_size: int
) -> tuple[int, int]:
    """The local rank and the number of ranks on this node."""
    if world_size == 1 and launcher.local_rank not in environ:
        return 0, 1
    size_name = launcher.local_world_size
    size = _local_world_size(environ, launcher=launcher)
    if not 1 <= size <= world_size:
        raise _bad(environ, size_name, f"from 1 to {world_size} ({launcher.world_size})")
    return _integer(environ, launcher.local_rank, below=(size, size_name)), size


def _local_world_size(environ: Mapping[str, str], *, launcher: _Launcher) -> int:
    name = launcher.local_world_size
    if launcher.name != "slurm":
        return _integer(environ, name)
    text = _value(environ, name)  # such as 4(x2),1: two nodes with 4 tasks and one with 1
    tasks: list[int] = []
    for word in text.split(","):
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", word)
        if not match or int(match[2] or 1) > MAX_NODES:
            raise _bad(environ, name, "a list such as 4(x2),1")
        tasks += [int(match[1])] * int(match[2] or 1)
    return tasks[_integer(environ, "SLURM_NODEID", below=(len(tasks), name))]


def _main_address(
    environ: Mapping[str, str],
    *,
    launcher: str,
    one_node: bool,
    can_resolve: Callable[[str], bool],
) -> str:
    """Where rank 0 listens: MASTER_ADDR, the first node, srun's host, or this host."""
    if given := environ.get("MASTER_ADDR"):
        return given
    if launcher == "alone":
        return LOCALHOST
    # Under mpirun the step is mpirun's own and lacks the first node; the job's list has it.
    list_name = "SLURM_STEP_NODELIST" if launcher == "slurm" else "SLURM_JOB_NODELIST"
    if launcher in ("slurm", "mpi") and (nodes := environ.get(list_name)):
        first = expand_node_list(nodes)[0]
        if can_resolve(first):
            return first
        # Right when srun runs in a batch script, on the first node; wrong on a login node.
        if launch := environ.get("SLURM_LAUNCH_NODE_IPADDR"):
            return launch
    if one_node:
        return LOCALHOST
    raise BadInput("MASTER_ADDR is not set and the ranks are on several hosts: name rank 0's host")


def _main_port(environ: Mapping[str, str], *, launcher: str, one_node: bool) -> int:
    """The port of rank 0: MASTER_PORT, or a number that all ranks of this job step share."""
    if environ.get("MASTER_PORT"):
        return _integer(environ, "MASTER_PORT", least=1, below=(65536, "the largest port"))
    if launcher == "alone":
        return _free_port()
    if launcher == "submitit":
        return _port_of(_value(environ, "SUBMITIT_LOCAL_JOB_ID"), step="0")
    if job := environ.get("SLURM_JOB_ID"):
        # Under mpirun some ranks see the step of mpirun's helper, and some see no step.
        return _port_of(job, step=environ.get("SLURM_STEP_ID", "0") if launcher == "slurm" else "0")
    if namespace := environ.get("PMIX_NAMESPACE"):
        return _port_of(namespace, step="0")
    if one_node:
        return _port_of(str(_mpiexec_process()), step="0")
    raise BadInput("MASTER_PORT is not set and the ranks are on several hosts: name a free port")


def _mpiexec_process() -> int:
    """A process id that all ranks of one mpiexec on this host share, even under wrapper scripts.

    MPICH passes on no job id, but it makes the process that it starts for each rank the leader of a
    session, and that leader's parent is the process manager, which all ranks share. The parent of
    the rank itself would be its own wrapper script.
    """
    leader = os.getsid(0)
    try:
        stat = Path(f"/proc/{leader}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return leader
    return int(stat.rpartition(")")[2].split()[1])


def _port_of(job: str, *, step: str) -> int:
    # 31 and NUM_PORTS have no common factor, so 12000 consecutive jobs have different ports.
    numbers = [int(t) if t.isdecimal() else zlib.crc32(t.encode()) for t in (job, step)]
    return FIRST_PORT + (numbers[0] * 31 + numbers[1]) % NUM_PORTS


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOCALHOST, 0))
        return int(listener.getsockname()[1])


def _value(environ: Mapping[str, str], name: str) -> str:
    if name not in environ:
        raise BadInput(f"{name} is not set, though the launcher's other variables are")
    return environ[name]


def _integer(
    environ: Mapping[str, str], name: str, *, least: int = 0, below: tuple[int, str] | None = None
) -> int:
    """The value of a variable as a number; `below` is an exclusive limit and its name."""
    text = _value(environ, name)
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise _bad(environ, name, "a whole number")
    if int(text) < least:
        raise _bad(environ, name, f"at least {least}")
    if below is not None and int(text) >= below[0]:
        raise _bad(environ, name, f"below {below[0]} ({below[1]})")
    return int(text)


def _bad(environ: Mapping[str, str], name: str, wanted: str) -> BadInput:
    return BadInput(f"{name}={environ[name]!r}: must be {wanted}")


def _split_outside_brackets(text: str) -> list[str]:
    return re.split(r",(?![^\[]*\])", text)


def _expand_ranges(text: str, *, source: str) -> list[str]:
    values: list[str] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", part)
        if not match:
            raise BadInput(f"node list {source!r}: {part!r} is neither a number nor a range")
        low, high = match[1], match[2] or match[1]
        if not 0 <= int(high) - int(low) < MAX_NODES:
            raise BadInput(f"node list {source!r}: the range {part!r} is empty or too long")
        values += [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
    return values

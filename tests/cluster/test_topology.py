"""Where am I: every launcher's variables, hostile values, node lists against SLURM's own parser."""

import os
import random
import shlex
import shutil
import socket
import string
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.base.errors import BadInput
from toolkit.cluster.topology import (
    FIRST_PORT,
    NUM_PORTS,
    Topology,
    array_task,
    detect,
    expand_node_list,
    resolves,
    worker_of,
)

HERE = socket.gethostname()

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "node-a",
    "MASTER_PORT": "29501",
}
SUBMITIT = {
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_LOCALID": "1",
    "SUBMITIT_LOCAL_NODEID": "0",
    "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
    "SUBMITIT_LOCAL_JOB_ID": "777",
}
# As printed by `sbatch -N2 --ntasks-per-node=2` on the four-node test cluster (22.05.8).
BATCH = {
    "SLURMD_NODENAME": "n1",
    "SLURM_JOB_ID": "3",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "n[1-2]",
    "SLURM_NPROCS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
STEP = BATCH | {
    "SLURMD_NODENAME": "n2",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
# A rank of `mpiexec -n 4` inside a job: its helper was started by srun, one per node.
MPICH_IN_STEP = STEP | {
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "PMI_RANK": "3",
    "PMI_SIZE": "4",
    "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "2",
}


def place(topology: Topology) -> tuple[str, int, int, int, int, int]:
    return (
        topology.launcher,
        topology.rank,
        topology.world_size,
        topology.local_rank,
        topology.local_world_size,
        topology.num_nodes,
    )


def never(host: str) -> bool:
    return False


def always(host: str) -> bool:
    return True


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("alone", 0, 1, 0, 1, 1)),
        (BATCH, ("alone", 0, 1, 0, 1, 1)),
        (TORCHRUN, ("torchrun", 5, 8, 1, 4, 2)),
        ({k: v for k, v in TORCHRUN.items() if k[0] != "G"}, ("torchrun", 5, 8, 1, 4, 2)),
        (STEP | TORCHRUN, ("torchrun", 5, 8, 1, 4, 2)),
        (SUBMITIT, ("submitit", 1, 2, 1, 2, 1)),
        (STEP | SUBMITIT, ("submitit", 1, 2, 1, 2, 1)),
        (SUBMITIT | TORCHRUN, ("torchrun", 5, 8, 1, 4, 2)),
        (STEP, ("slurm", 3, 4, 1, 2, 2)),
        (STEP | {"PMI_RANK": "3", "PMI_SIZE": "4"}, ("slurm", 3, 4, 1, 2, 2)),
        (MPICH, ("mpi", 1, 2, 1, 2, 1)),
        (MPICH_IN_STEP, ("mpi", 3, 4, 1, 2, 2)),
        (BATCH | OPEN_MPI, ("mpi", 2, 4, 0, 2, 2)),
        (STEP | OPEN_MPI, ("mpi", 2, 4, 0, 2, 2)),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, ("mpi", 0, 1, 0, 1, 1)),
    ],
)
def test_each_launcher_is_recognised(
    environ: dict[str, str], expected: tuple[str, int, int, int, int, int]
) -> None:
    assert place(detect(environ, can_resolve=always)) == expected


@pytest.mark.parametrize(
    ("tasks", "node", "expected"), [("2,1", 0, 2), ("2,1", 1, 1), ("1,3(x2)", 2, 3), ("7", 0, 7)]
)
def test_tasks_per_node_of_a_step(tasks: str, node: int, expected: int) -> None:
    step = STEP | {
        "SLURM_STEP_NUM_TASKS": "7",
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": "0",
    }
    assert detect(step, can_resolve=never).local_world_size == expected


@pytest.mark.parametrize(
    ("environ", "can_resolve", "address"),
    [
        ({}, always, "127.0.0.1"),
        (BATCH, always, "127.0.0.1"),
        ({"MASTER_ADDR": "elsewhere"}, always, "elsewhere"),
        (TORCHRUN, never, "node-a"),
        (SUBMITIT, never, "127.0.0.1"),
        (STEP, always, "n1"),
        (STEP, never, "10.0.0.1"),
        (STEP | {"SLURM_STEP_NODELIST": "n[2-4]"}, always, "n2"),
        (STEP | {"MASTER_ADDR": "given"}, always, "given"),
        (MPICH, never, "127.0.0.1"),
        # mpirun's own step leaves out the first node: the job's list counts.
        (STEP | OPEN_MPI | {"SLURM_STEP_NODELIST": "n2"}, always, "n1"),
    ],
)
def test_ranks_meet_where_the_launcher_says(
    environ: dict[str, str], can_resolve: object, address: str
) -> None:
    assert callable(can_resolve)
    assert detect(environ, can_resolve=can_resolve).main_address == address


def test_main_address_of_a_step_on_one_node_without_any_hint() -> None:
    step = {k: v for k, v in STEP.items() if k != "SLURM_LAUNCH_NODE_IPADDR"}
    alone = step | {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_NODEID": "0"}
    assert detect(alone, can_resolve=never).main_address == "127.0.0.1"
    with pytest.raises(BadInput, match="MASTER_ADDR is not set"):
        detect(step, can_resolve=never)


def test_ranks_of_a_step_agree_on_a_port_and_other_steps_and_jobs_differ() -> None:
    def port(**changes: str) -> int:
        return detect(STEP | changes, can_resolve=never).main_port

    assert port() == port(SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0")
    ports = {port(SLURM_JOB_ID=str(job)) for job in range(100_000, 100_000 + NUM_PORTS)}
    assert len(ports) == NUM_PORTS
    assert min(ports) >= FIRST_PORT
    assert max(ports) < 32768
    assert port(SLURM_STEP_ID="1") != port()
    assert port(MASTER_PORT="29400") == 29400


def test_ports_outside_of_slurm() -> None:
    assert detect(TORCHRUN).main_port == 29501
    assert (
        detect(SUBMITIT).main_port == detect(SUBMITIT | {"SUBMITIT_LOCAL_LOCALID": "0"}).main_port
    )
    assert (
        detect(SUBMITIT).main_port != detect(SUBMITIT | {"SUBMITIT_LOCAL_JOB_ID": "778"}).main_port
    )
    assert detect(MPICH).main_port == detect(MPICH).main_port
    with socket.socket() as probe:  # alone: a port that is really free
        probe.bind(("127.0.0.1", detect({}).main_port))
    with pytest.raises(BadInput, match="MASTER_PORT is not set"):
        detect(OPEN_MPI | {"MASTER_ADDR": "node-a"})


def test_ranks_of_mpirun_agree_on_a_port_whether_they_see_a_step_or_not() -> None:
    first = detect(BATCH | OPEN_MPI, can_resolve=always)
    other = detect(STEP | {"SLURM_STEP_ID": "5"} | OPEN_MPI, can_resolve=always)
    assert (first.main_address, first.main_port) == (other.main_address, other.main_port)


MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(MPIEXEC is None, reason="the mpich package is not installed")
def test_ranks_of_a_real_mpiexec_agree_even_under_a_wrapper_script() -> None:
    program = (
        "import os; from toolkit.cluster.topology import detect; t = detect(os.environ);"
        # One write each: with an unbuffered Python, the pieces of a print would interleave.
        "print(f'{t.launcher} {t.world_size} {t.main_address} {t.main_port} {t.rank}\\n', end='')"
    )
    wrapped = f"{shlex.join([sys.executable, '-c', program])}; true"  # `true`: no implicit exec
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "MASTER_"))}
    done = subprocess.run(
        [str(MPIEXEC), "-n", "3", "bash", "-c", wrapped],
        env=environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    assert sorted(rank for _, rank in rows) == ["0", "1", "2"]
    assert len({row for row, _ in rows}) == 1
    assert rows[0][0].startswith("mpi 3 127.0.0.1 ")


def test_nodes_and_jobs_have_names_for_people() -> None:
    assert detect({}).node_name == HERE
    assert detect(STEP, can_resolve=never).node_name == "n2"
    assert detect({}).job_id == "local"
    assert detect(BATCH).job_id == "3"
    assert detect(SUBMITIT).job_id == "local"
    assert resolves("localhost")
    assert not resolves("no-such-host.invalid")
    assert not resolves("")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (TORCHRUN | {"RANK": "x"}, "RANK='x': must be a whole number"),
        (TORCHRUN | {"RANK": ""}, "RANK='': must be a whole number"),
        (TORCHRUN | {"RANK": "-1"}, "RANK='-1': must be a whole number"),
        (TORCHRUN | {"RANK": "1\n"}, r"RANK='1\\n': must be a whole number"),
        (TORCHRUN | {"RANK": "9" * 5000}, "must be a whole number"),
        (TORCHRUN | {"RANK": "8"}, r"RANK='8': must be below 8 \(WORLD_SIZE\)"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "WORLD_SIZE='0': must be at least 1"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, r"LOCAL_RANK='4': must be below 4 \(LOCAL_WORLD_SIZE\)"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, r"LOCAL_WORLD_SIZE='9': must be from 1 to 8"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "0"}, r"LOCAL_WORLD_SIZE='0': must be from 1 to 8"),
        (TORCHRUN | {"MASTER_PORT": "65536"}, "MASTER_PORT='65536': must be below 65536"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT='http': must be a whole number"),
        (TORCHRUN | {"GROUP_WORLD_SIZE": "two"}, "GROUP_WORLD_SIZE='two'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_WORLD_SIZE is not set"),
        (SUBMITIT | {"SUBMITIT_LOCAL_GLOBALID": "2"}, "SUBMITIT_LOCAL_GLOBALID='2': must be below"),
        (STEP | {"SLURM_PROCID": "4"}, r"SLURM_PROCID='4': must be below 4"),
        (STEP | {"SLURM_NODEID": "2"}, "SLURM_NODEID='2': must be below 2"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "2(2)"}, r"SLURM_STEP_TASKS_PER_NODE='2\(2\)'"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "1(x9999999999)"}, "SLURM_STEP_TASKS_PER_NODE="),
        (STEP | {"SLURM_STEP_NODELIST": "n[1-"}, r"node list 'n\[1-'"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "MPI_LOCALNRANKS is not set"),
        (MPICH | {"PMI_RANK": "2"}, "PMI_RANK='2': must be below 2"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE is not set"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT='0': must be at least 1"),
    ],
)
def test_bad_values_are_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        detect(environ, can_resolve=never)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[001-003,7],gpu-a1", ["n001", "n002", "n003", "n7", "gpu-a1"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("n[08-10]", ["n08", "n09", "n10"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("a[1-2]b[3-4]", ["a1b3", "a1b4", "a2b3", "a2b4"]),
        ("r[1-2]n[1,3]-ib,x", ["r1n1-ib", "r1n3-ib", "r2n1-ib", "r2n3-ib", "x"]),
        ("b,a,b", ["b", "a", "b"]),
        ("[1-2]", ["1", "2"]),
    ],
)
def test_a_node_list_is_expanded(text: str, expected: list[str]) -> None:
    assert expand_node_list(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "n1,", "n[", "n]", "n[]", "n[1", "n[1-]", "n[-1]", "n[a-b]", "n[3-1]", "n[1,]"),
        *("n[1-2-3]", "n[[1]]", "n]1[", "n[1-9999999999]", "n[1-999]m[1-999]", "n[1;2]", "n[1]],b"),
        "n[" + "9" * 5000 + "]",
    ],
)
def test_damaged_node_list(text: str) -> None:
    with pytest.raises(BadInput, match="node list"):
        expand_node_list(text)


def random_node_list(rng: random.Random) -> str:
    def bracket() -> str:
        parts = []
        for _ in range(rng.randint(1, 3)):
            low, width = rng.randint(0, 120), rng.choice([1, 1, 2, 3, 4])
            high = low + rng.randint(1, 12)
            parts.append(f"{low:0{width}}" + (f"-{high:0{width}}" if rng.random() < 0.6 else ""))
        return f"[{','.join(parts)}]"

    def word() -> str:
        name = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 4)))
        if rng.random() < 0.3:
            name += rng.choice(["-", "-gpu-", "0"])
        if rng.random() < 0.7:
            name += bracket()
            if rng.random() < 0.3:
                name += f"{rng.choice(string.ascii_lowercase)}{bracket()}"
        return name

    return ",".join(word() for _ in range(rng.randint(1, 4)))


@pytest.mark.skipif(shutil.which("scontrol") is None, reason="scontrol is not installed")
def test_node_list_as_slurm_reads_it(tmp_path: Path) -> None:
    # scontrol wants a configuration even for this, and contacts nobody.
    conf = tmp_path / "slurm.conf"
    conf.write_text(
        "ClusterName=x\nSlurmctldHost=localhost\nNodeName=n1\nPartitionName=p Nodes=n1\n"
    )
    rng = random.Random(20240607)
    for _ in range(200):
        text = random_node_list(rng)
        answer = subprocess.run(
            ["scontrol", "show", "hostnames", text],
            env={"PATH": "/usr/bin:/bin:/usr/local/bin", "SLURM_CONF": str(conf)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert expand_node_list(text) == answer.stdout.split(), text


def array(**values: int) -> dict[str, str]:
    return {f"SLURM_ARRAY_TASK_{name.upper()}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1)),
        (array(id=0, count=4, min=0, max=3, step=1), (0, 4)),
        (array(id=3, count=4, min=0, max=3), (3, 4)),
        (array(id=6, count=3, min=5, max=7, step=1), (1, 3)),
        (array(id=5, count=3, min=3, max=7, step=2), (1, 3)),
        (array(id=9, count=1, min=9, max=9, step=1), (0, 1)),
    ],
)
def test_a_task_of_an_array_is_a_rank(environ: dict[str, str], expected: tuple[int, int]) -> None:
    assert array_task(environ) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1)),
        (array(id=2, count=3, min=0, max=2), (2, 3)),
        (STEP, (3, 4)),
        (STEP | array(id=2, count=3, min=0, max=2), (11, 12)),
    ],
)
def test_a_worker_is_a_rank_of_a_task(environ: dict[str, str], expected: tuple[int, int]) -> None:
    assert worker_of(detect(environ, can_resolve=always), environ=environ) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (array(id=5, count=3, min=1, max=7, step=1), "SLURM_ARRAY_TASK_ID='5': must be one of 3"),
        (array(id=4, count=3, min=3, max=7, step=2), "SLURM_ARRAY_TASK_ID='4': must be one of 3"),
        (array(id=0, count=3, min=1, max=3), "SLURM_ARRAY_TASK_ID='0': must be at least 1"),
        (array(id=0, count=0, min=0), "SLURM_ARRAY_TASK_COUNT='0': must be at least 1"),
        (array(id=0, count=1, min=0, step=0), "SLURM_ARRAY_TASK_STEP='0': must be at least 1"),
        (array(id=0, min=0), "SLURM_ARRAY_TASK_COUNT is not set"),
        (array(id=0, count=2), "SLURM_ARRAY_TASK_MIN is not set"),
        ({"SLURM_ARRAY_TASK_ID": "one"} | array(count=2, min=0), "SLURM_ARRAY_TASK_ID='one'"),
    ],
)
def test_an_array_that_cannot_be_counted_is_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        array_task(environ)

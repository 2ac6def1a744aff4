"""A real SLURM of four nodes on this one machine, for tests.

Knows how to start slurmctld, four slurmd and a munged of its own in one temporary folder, and how
to stop exactly these processes. Refuses to know what the jobs do.

The daemons are children of tests/slurm/supervisor.py, which outlives a killed pytest just long
enough to end them.
"""

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.slurm.supervisor import descendants, kill, parent_of, proc_parts

NODES = ("n1", "n2", "n3", "n4")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "scancel", "squeue")
FINAL_STATES = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
ROOT = Path(__file__).parents[2]
SEARCH_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/local/sbin"

# Ports of a cluster: one block of 16. Below 20000, where the ports of toolkit.cluster.topology
# begin, and below 32768, where the kernel takes ports for outgoing connections.
FIRST_PORT, LAST_PORT, BLOCK_PORTS = 11000, 19000, 16
USED_PORTS = 2 + len(NODES)  # slurmctld, the nodes, and slurmdbd where there is one

SLURM_CONF = """\
ClusterName=toolkit
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
# Another cluster of this machine has other jobs: the ports of their ranks come of their numbers.
FirstJobId={first_job}
SlurmUser={user}
SlurmdUser={user}
# A socket of our own: no system-wide munged is needed, used or disturbed.
# cred_expire is also how long a requeued job waits (120 by default; see Cluster.start_now).
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
{accounting}
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Short intervals: by default a batch job waits 3 s and a pending one up to a minute.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=50000,bf_interval=1
PriorityType=priority/basic
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
SlurmdTimeout=15
SlurmctldTimeout=15
KillWait=5
ReturnToService=2
MinJobAge=3600
InactiveLimit=0
GresTypes=gpu
{nodes}
PartitionName=main Default=YES Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 \
MaxTime=INFINITE DefaultTime=10 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE DefaultTime=10 \
State=UP
"""
NODE_LINE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
    "CPUs=4 RealMemory=100000 Gres=gpu:1 Feature=fast,{name} State=UNKNOWN"
)


class ClusterError(RuntimeError):
    """The cluster did not start, or a command that it depends on failed."""


def missing_programs() -> list[str]:
    """The programs that this machine lacks; empty when a cluster can be started."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCH_PATH) is None]


class Cluster:
    """Four nodes n1..n4 with 4 CPUs and one fake GPU each; use it in a `with` statement.

    Partitions: `main` (default, preemptible, 20 s of grace) and `urgent`, which preempts it.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="toolkit-slurm-"))
        self.conf = self.folder / "slurm.conf"
        self.slurmctld_log = self.folder / "slurmctld.log"
        self.daemons: dict[str, int] = {}
        self._supervisor: subprocess.Popen[str] | None = None
        self._lock: socket.socket | None = None
        self._conf_before = os.environ.get("SLURM_CONF")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a login node of this cluster, even if pytest runs in another's job."""
        own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SLURMD_"))}
        return {**own, "SLURM_CONF": str(self.conf)}

    def start(self) -> None:
        """Start the daemons and wait until all nodes are idle; `ClusterError` with the log."""
        port = self._reserve_ports()
        self._write_configuration(port)
        self._supervisor = subprocess.Popen(
            [sys.executable, "-m", "tests.slurm.supervisor", str(self.folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal must not reach the daemons first
        )
        munged = ["munged", "--foreground", "--force", f"--key-file={self.folder}/munge.key"]
        for kind in ("socket", "pid-file", "log-file", "seed-file"):
            munged.append(f"--{kind}={self.folder}/munge.{kind.removesuffix('-file')}")
        self._launch("munged", command=munged)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (self.folder / "munge.socket").exists():
            self._check_start(deadline, wanted="munged's socket")
        self._start_accounting(port, deadline=deadline)
        self._launch("slurmctld", command=["slurmctld", "-D", "-c", "-f", str(self.conf)])
        for node in NODES:
            self.start_node(node)
        while self.nodes_idle() != list(NODES):
            self._check_start(deadline, wanted="four idle nodes")
        os.environ["SLURM_CONF"] = str(self.conf)

    def stop(self) -> None:
        """End every process that was started, wherever it hides, and remove the folder."""
        if self._supervisor is not None:
            try:
                self._supervisor.communicate(timeout=STOP_TIMEOUT_S)  # closes its standard input
            finally:
                self._supervisor.kill()
                self._supervisor = None
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if os.environ.get("SLURM_CONF") == str(self.conf):
            del os.environ["SLURM_CONF"]
            if self._conf_before is not None:
                os.environ["SLURM_CONF"] = self._conf_before

    def run(
        self,
        command: Sequence[str],
        *,
        timeout_s: float = 60.0,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the "login node"; `environ` is added; `check` makes failure an error."""
        done = subprocess.run(
            list(command),
            env={**self.environ, **(environ or {})},
            cwd=cwd or self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise ClusterError(f"{list(command)}: exit code {done.returncode}: {done.stderr}")
        return done

    def submit(
        self,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> str:
        """`sbatch` with these arguments; the job id. Without `cwd`, output goes to `folder`."""
        command = ["sbatch", "--parsable", *arguments]
        return self.run(command, environ=environ, cwd=cwd, check=True).stdout.strip()

    def jobs(self, job_id: str | int) -> list[dict[str, str]]:
        """The fields of `scontrol show job`, one mapping per record (an array has several)."""
        text = self.run(["scontrol", "show", "job", "-o", str(job_id)], check=True).stdout
        return [_fields(line) for line in text.splitlines() if line.startswith("JobId=")]

    def job(self, job_id: str | int) -> dict[str, str]:
        """The fields of `scontrol show job` of one job, or of one array task (`12_3`)."""
        records = self.jobs(job_id)
        if len(records) != 1:
            raise ClusterError(f"job {job_id} has {len(records)} records: ask for one array task")
        return records[0]

    def wait(self, job_id: str | int, timeout_s: float = 60.0) -> str:
        """Wait for a job to end; its final state. Of an array, the first that is not COMPLETED.

        Raises `TimeoutError` with the last state and its reason.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            records = self.jobs(job_id)
            states = [record["JobState"] for record in records]
            if states and all(state in FINAL_STATES for state in states):
                return next((state for state in states if state != "COMPLETED"), "COMPLETED")
            if time.monotonic() > deadline:
                reasons = [record["Reason"] for record in records]
                raise TimeoutError(f"job {job_id}: {states} ({reasons}) after {timeout_s} s")
            time.sleep(0.1)

    def wait_state(self, job_id: str | int, *, state: str, timeout_s: float = 60.0) -> None:
        """Wait until one job is in `state` (RUNNING, PENDING, ...); `TimeoutError` otherwise."""
        deadline = time.monotonic() + timeout_s
        while (now := self.job(job_id)["JobState"]) != state:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is {now}, not {state}, after {timeout_s} s")
            time.sleep(0.1)

    def start_now(self, job_id: str | int) -> None:
        """Wait until a job is requeued and pending, and spare it the delay (reason BeginTime).

        A slurmd refuses credentials as old as the job's last end, which it knows to the second: a
        start within that same second would FAIL ("Job credential revoked"), so wait for the next.
        """
        self.wait_state(job_id, state="PENDING")
        time.sleep(1.0 - time.time() % 1.0)
        self.run(["scontrol", "update", f"jobid={job_id}", "starttime=now"], check=True)

    def nodes_idle(self) -> list[str]:
        """The names of the nodes that are up, answering and without work."""
        done = self.run(["sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N %T"])
        rows = [line.split() for line in done.stdout.splitlines()]
        return sorted(name for name, state in rows if state == "idle")  # not idle*: no answer

    def wait_idle(self, timeout_s: float = 60.0) -> None:
        """Wait until all nodes are idle; `TimeoutError` names those that are."""
        deadline = time.monotonic() + timeout_s
        while (idle := self.nodes_idle()) != list(NODES):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout_s} s only {idle} are idle")
            time.sleep(0.1)

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node (again)."""
        self._launch(node, command=["slurmd", "-D", "-N", node, "-f", str(self.conf)])

    def kill_node(self, node: str) -> None:
        """Fail a node as a power cut does: SIGKILL to its slurmd, its job steps and their tasks.

        SLURM notices after SlurmdTimeout. `start_node` brings it back.
        """
        assert self._supervisor is not None
        # A slurmstepd does not say which node it serves; the tasks below it do.
        mark = f"SLURMD_NODENAME={node}".encode()
        # Below us and not only the supervisor: what a forked task starts is below the server of
        # tests/forking, which also ends the task when its shim is killed.
        tasks = [pid for pid in descendants(os.getpid()) if mark in proc_parts(pid, "environ")]
        parents = {parent for pid in tasks if (parent := parent_of(pid))}
        steps = [pid for pid in parents if proc_parts(pid, "cmdline")[0].startswith(b"slurmstepd")]
        below = [pid for step in steps for pid in descendants(step)]
        for pid in (self.daemons[node], *steps, *tasks, *below):
            kill(pid)

    def log_tail(self, *daemons: str, num_lines: int = 30) -> str:
        """The end of slurmctld's log, and before it of the output of the named daemons."""
        parts = []
        for path in (*(self.folder / f"{name}.out" for name in daemons), self.slurmctld_log):
            lines = path.read_text(errors="replace").splitlines() if path.exists() else ["(none)"]
            parts.append("\n".join([f"--- {path.name}", *lines[-num_lines:]]))
        return "\n".join(parts)

    def _accounting(self, port: int) -> str:
        """The lines of slurm.conf about accounting."""
        return "AccountingStorageType=accounting_storage/none"

    def _start_accounting(self, port: int, *, deadline: float) -> None:
        """What must run before slurmctld does."""

    def _launch(self, name: str, *, command: list[str]) -> None:
        assert self._supervisor is not None and self._supervisor.stdin and self._supervisor.stdout
        program = shutil.which(command[0], path=SEARCH_PATH)
        if program is None:
            raise ClusterError(f"{command[0]} is not installed")
        order = [str(self.folder / f"{name}.out"), program, *command[1:]]
        self._supervisor.stdin.write(json.dumps(order) + "\n")
        self._supervisor.stdin.flush()
        self.daemons[name] = int(self._supervisor.stdout.readline())

    def _check_start(self, deadline: float, *, wanted: str) -> None:
        dead = [name for name, pid in self.daemons.items() if parent_of(pid) is None]
        if dead or time.monotonic() > deadline:
            why = f"{', '.join(dead)} ended" if dead else f"no {wanted} in {START_TIMEOUT_S} s"
            raise ClusterError(f"the test cluster did not start: {why}\n{self.log_tail(*dead)}")
        time.sleep(0.1)

    def _reserve_ports(self) -> int:
        """The first port of a free block, held by a lock as long as the cluster lives.

        A bind test alone would give two clusters that start together the same ports. The lock is
        a name in the abstract socket namespace: the kernel frees it, and no file is left behind.
        """
        for first in range(FIRST_PORT, LAST_PORT, BLOCK_PORTS):
            lock = socket.socket(socket.AF_UNIX)
            try:
                lock.bind(f"\0toolkit-slurm-{first}")
                for port in range(first, first + USED_PORTS):
                    socket.create_server(("", port)).close()
            except OSError:
                lock.close()
                continue
            self._lock = lock
            return first
        raise ClusterError(f"no free block of ports between {FIRST_PORT} and {LAST_PORT}")

    def _write_configuration(self, port: int) -> None:
        host = socket.gethostname().partition(".")[0]
        nodes = [
            NODE_LINE.format(name=name, host=host, port=port + index)
            for index, name in enumerate(NODES, start=1)
        ]
        values = {"host": host, "port": port, "user": getpass.getuser(), "folder": self.folder}
        values["accounting"] = self._accounting(port)
        values["first_job"] = 1 + 300 * ((port - FIRST_PORT) // BLOCK_PORTS) % 9000
        self.conf.write_text(SLURM_CONF.format(nodes="\n".join(nodes), **values))
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        (self.folder / "state").mkdir()
        for node in NODES:
            (self.folder / f"spool.{node}").mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))


def _fields(line: str) -> dict[str, str]:
    # Values hold blanks and `=` (Command=run.sh train.steps=3); a key begins with a capital.
    pairs = re.split(r" (?=[A-Z][A-Za-z0-9_:/]*=)", line.strip())
    return {key: value.strip() for key, _, value in (pair.partition("=") for pair in pairs)}

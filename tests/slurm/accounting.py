"""The test cluster with accounting: slurmdbd, and a MariaDB of its own on a socket in its folder.

Knows accounts and QoS. The database is made anew, and ends with the cluster.
"""

import getpass
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.slurm.cluster import NODES, Cluster

PROGRAMS = ("slurmdbd", "sacct", "sacctmgr", "mariadbd", "mariadb-install-db")
ACCOUNT, QOS = "team7", "long"

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=accounting
# As in the shortest second: what a job has done is asked for a moment after its end.
CommitDelay=0
"""


class AccountingCluster(Cluster):
    """A cluster that keeps accounts, enforces them.

    This user may use the account team7 and its QoS `long`.
    """

    def start(self) -> None:
        """Also make cluster, account and QoS known."""
        super().start()
        user = getpass.getuser()
        for command in (
            ["qos", QOS],
            ["account", ACCOUNT, "Description=tests", "Organization=tests"],
            ["user", user, f"Account={ACCOUNT}", f"QOS=normal,{QOS}"],
        ):
            self.run(["sacctmgr", "-i", "add", *command], check=True)

    def forget_ended_jobs(self, jobs: Sequence[str], *, timeout_s: float = 60.0) -> None:
        """Have slurmctld forget jobs that have ended, as it does after MinJobAge."""
        text = self.conf.read_text()
        self.conf.write_text(text.replace("MinJobAge=3600", "MinJobAge=2"))
        self.run(["scontrol", "reconfigure"], check=True)
        deadline = time.monotonic() + timeout_s
        while known := [
            job for job in jobs if not self.run(["scontrol", "show", "job", job]).returncode
        ]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"jobs {known} are known after {timeout_s} s")
            time.sleep(0.2)
        self.conf.write_text(text)
        self.run(["scontrol", "reconfigure"], check=True)

    def _accounting(self, port: int) -> str:
        return "\n".join(
            (
                "AccountingStorageType=accounting_storage/slurmdbd",
                "AccountingStorageHost=127.0.0.1",
                f"AccountingStoragePort={self._dbd_port(port)}",
                f"AccountingStoragePass={self.folder}/munge.socket",
                "AccountingStorageEnforce=associations,limits,qos",
                "AccountingStoreFlags=job_comment",
            )
        )

    @staticmethod
    def _dbd_port(port: int) -> int:
        return port + len(NODES) + 1

    def _start_accounting(self, port: int, *, deadline: float) -> None:
        data, database = self.folder / "database", self.folder / "mariadb.socket"
        as_user = f"--user={getpass.getuser()}"
        make = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", as_user]
        make += ["--skip-test-db", "--auth-root-authentication-method=normal"]
        subprocess.run(make, check=True, capture_output=True)
        small = ["--innodb-log-file-size=8M", "--innodb-buffer-pool-size=32M"]
        fast = ["--innodb-flush-log-at-trx-commit=0", "--skip-networking"]
        server = ["mariadbd", "--no-defaults", f"--datadir={data}", as_user, *small, *fast]
        self._launch("mariadbd", command=[*server, f"--socket={database}"])
        self._wait_for(database, deadline=deadline)
        conf = self.folder / "slurmdbd.conf"
        conf.touch(mode=0o600)
        values = {"folder": self.folder, "user": getpass.getuser()}
        conf.write_text(SLURMDBD_CONF.format(port=self._dbd_port(port), **values))
        # slurmdbd asks for "localhost", which is a socket; the client library looks here for it.
        given = [f"MYSQL_UNIX_PORT={database}", f"SLURM_CONF={self.conf}"]
        self._launch("slurmdbd", command=["env", *given, "slurmdbd", "-D"])
        register = ["sacctmgr", "-i", "add", "cluster", "toolkit"]
        while self.run(register).returncode:
            self._check_start(deadline, wanted="slurmdbd that answers")

    def _wait_for(self, path: Path, *, deadline: float) -> None:
        while not path.exists():
            self._check_start(deadline, wanted=path.name)

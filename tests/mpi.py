"""Commands under the mpiexec of the virtual environment."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import need

# Whatever launched the tests must not pass for the launcher of these ranks.
FOREIGN = ("SLURM_", "SUBMITIT_", "PMI", "OMPI_", "MPI_")
FOREIGN_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def mpi_environ() -> dict[str, str]:
    """MPICH from the virtual environment, for mpi4py's one binary for all MPIs."""
    return {"MPI4PY_MPIABI": "mpich", "LD_LIBRARY_PATH": str(Path(sys.prefix) / "lib")}


def mpi_command(ranks: Sequence[Sequence[str]], *, flags: Sequence[str] = ()) -> list[str]:
    """A command a rank, all on this machine."""
    mpiexec = Path(sys.prefix) / "bin" / "mpiexec"
    need(mpiexec.is_file(), "no mpiexec beside python: pip install mpich")
    foreign = [n for n in os.environ if n.startswith(FOREIGN) or n in FOREIGN_NAMES]
    unset = [f"--unset={name}" for name in foreign]
    given = [f"{name}={value}" for name, value in mpi_environ().items()]
    parts = [part for command in ranks for part in (":", "-n", "1", *command)]
    return ["env", *unset, *given, str(mpiexec), *flags, *parts[1:]]

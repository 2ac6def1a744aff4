"""MPI, where a program runs under mpirun. Knows mpi4py; no torch.

mpi4py is imported inside, since its import starts MPI: a process that is alone must not need it.
"""


def wait_for_workers() -> bool:
    """Wait until every MPI process has come here; returns whether we are the first of them."""
    from mpi4py import MPI

    MPI.COMM_WORLD.Barrier()
    return bool(MPI.COMM_WORLD.Get_rank() == 0)

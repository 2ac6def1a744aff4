"""Workers for independent pieces of work: this process, processes of this machine, or MPI ranks.

Knows `concurrent.futures` and mpi4py, which has the same interface: the caller gets an executor and
need not know what kind of worker does the work. Refuses to know the work. No torch.
"""

import contextlib
import ctypes
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any, cast

PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextlib.contextmanager
def local_crew(num_workers: int) -> Iterator[Executor]:
    """An executor with `num_workers` processes of this machine; if 1, this process does the work.

    An error that leaves the block cancels work that has not begun; a signal also ends work that
    has.
    """
    if num_workers == 1:
        yield InProcess()
        return
    # spawn, since a forked child would inherit locks that other threads of the parent hold.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield executor
    except (SystemExit, KeyboardInterrupt):
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def mpi_crew() -> Iterator[tuple[Executor, int] | None]:
    """An executor over all MPI ranks. Rank 0 gets the executor, which deals work to the other
    ranks, and their number. The others work until rank 0 leaves the block, and get None. If there
    is only rank 0, it does the work itself."""
    from mpi4py import MPI
    from mpi4py.futures import MPICommExecutor

    others = MPI.COMM_WORLD.Get_size() - 1
    if others == 0:
        yield InProcess(), 1
        return
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
        yield None if executor is None else (cast(Executor, executor), others)


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent dies: a killed parent cannot do that."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class InProcess(Executor):
    """An executor that does the work at once, in the thread that submits it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call `fn` now; the future that is returned is already done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # raised where the result is asked for
            future.set_exception(error)
        return future

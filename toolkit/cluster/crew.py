"""Workers for independent pieces of work: this process, processes of this machine, or MPI ranks.

Knows `concurrent.futures` and mpi4py, which follows it: whoever has work to do is handed an
executor and need not know who does it. Refuses to know the work. No torch.
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
    """`num_workers` processes of this machine; one worker is this process itself.

    Left with an error, it drops what has not begun; left by a signal, also what has.
    """
    if num_workers == 1:
        yield InProcess()
        return
    # spawn: a forked child would inherit locks that threads of the parent hold.
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
    """All MPI ranks: rank 0 gets an executor, which deals work to the others, and their number;
    the others work until rank 0 is done, and get None. Alone, rank 0 works itself."""
    from mpi4py import MPI
    from mpi4py.futures import MPICommExecutor

    others = MPI.COMM_WORLD.Get_size() - 1
    if others == 0:
        yield InProcess(), 1
        return
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
        yield None if executor is None else (cast(Executor, executor), others)


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent is gone: a killed parent cannot do it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class InProcess(Executor):
    """Work is done at once, by whoever hands it in."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Do it; the future is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # whoever asks for the result gets it
            future.set_exception(error)
        return future

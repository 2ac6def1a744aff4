"""Pieces of work dealt over MPI: rank 0 keeps the book, and works too. Knows mpi4py; no torch.

mpi4py is imported inside functions, because its import starts MPI, and a process that works alone
must not need MPI. There are no collectives, so no rank waits for one that leaves early, is late or
is lost. No call here blocks: MPI libraries wait by spinning, which would take a core from the
model.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

from toolkit.base.console import say
from toolkit.base.errors import BadInput, RunFailed
from toolkit.cluster.dealing import Book

REPORT, ANSWER = 71, 72  # tags
POLL_S = 0.002
SERVE_S = 0.005  # if rank 0's thread polled more often, it would take time from rank 0's model
BEATS = 6  # messages within the time after which a silent rank is lost


class Answer(NamedTuple):
    """What rank 0 answers a rank that asks for work: a piece; or None while none is free; or None
    and `over`, with `left` pieces not done because rank 0 was `stopped` or no rank could do them.
    """

    piece: int | None
    over: bool
    left: int
    stopped: bool


class Dealing:
    """This rank's part of an MPI job whose pieces rank 0 deals; enter it early, on every rank.

    A rank that is not heard for `lost_after_s` seconds is lost: its pieces are dealt again. When a
    rank dies, launchers end the whole job (seen with MPICH 5, with any flags), and the restarted
    job continues. Raises `BadInput` unless MPI sees the `num_ranks` that the launcher started.
    """

    def __init__(self, *, lost_after_s: float, num_ranks: int | None = None) -> None:
        from mpi4py import MPI

        self._mpi, self._comm = MPI, MPI.COMM_WORLD
        self.rank, self.size = int(self._comm.Get_rank()), int(self._comm.Get_size())
        if num_ranks is not None and num_ranks != self.size:
            raise BadInput(
                f"MPI sees {self.size} process(es) where the launcher has started {num_ranks}: "
                "mpi4py has found another MPI than the launcher's; set MPI4PY_MPIABI, or "
                "schedule=claim"
            )
        self._lost_after_s = lost_after_s
        # The lock lets one thread at a time call MPI, so that MPI_THREAD_SERIALIZED is enough.
        self._mpi_lock, self._book_lock = threading.Lock(), threading.Lock()
        self._book: Book | None = None
        self._added: list[int] = []
        self._adders: set[int] = set()  # ranks that have called `add`
        self._gone: set[int] = set()  # ranks that have said goodbye, or are lost
        self._stopped = False
        self._end = threading.Event()
        self.last = Answer(None, over=False, left=0, stopped=False)
        target = self._serve if self.rank == 0 else self._beat_on
        self._thread = threading.Thread(target=target, name="dealing", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.rank == 0:
            with self._book_lock:
                # After an error of rank 0 alone the others go on. They stop if rank 0 was told to
                # stop, or never had work to deal.
                if self._book is None or (kind and not issubclass(kind, Exception)):
                    self._stopped = True
                elif error:
                    self._book.lose(0)
        self._end.set()
        self._thread.join()
        if self.rank != 0:
            self._send("bye", None)  # after the last beat, which would say that we are back

    def deal(self, pieces: list[int]) -> None:
        """Begin to deal these pieces; rank 0 calls it once."""
        with self._book_lock:
            self._book = Book([*self._added, *(p for p in pieces if p not in self._added)])

    def add(self, pieces: list[int]) -> None:
        """Add pieces to those that are dealt. Every rank calls it once, perhaps with an empty list:
        the work is not over before all have."""
        self._tell("add", pieces)

    def take(self, should_stop: Callable[[], bool]) -> int | None:
        """The next piece for this rank; None when the work is over (`last` says why), or when
        `should_stop` returns true."""
        wait_s = POLL_S
        while not should_stop():
            self.last = self._book_answer(0) if self.rank == 0 else self._ask()
            if self.last.piece is not None or self.last.over:
                return self.last.piece
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 0.5)
        return None

    def stop(self) -> None:
        """Note that this rank was told to stop. If it is rank 0, all ranks stop, because the job
        ends with rank 0."""
        if self.rank == 0:
            self._stopped = True
            self.last = self._book_answer(0)

    def finish(self, piece: int) -> None:
        """Report that this rank has done `piece`."""
        self._tell("finish", piece)

    def give_back(self, piece: int) -> None:
        """Report that this rank will not do `piece`, so that another rank gets it."""
        self._tell("give_back", piece)

    def fail(self, piece: int) -> None:
        """Report that this rank could not do `piece`."""
        self._tell("fail", piece)

    def _tell(self, what: str, content: Any) -> None:
        if self.rank == 0:
            self._hear(0, what, content)
        else:
            self._send(what, content)

    def _send(self, what: str, content: Any, *, to: int = 0, tag: int = REPORT) -> None:
        with self._mpi_lock:
            # MPI copies a message this short into the receiver's memory at once, so `send` does not
            # wait, even if the receiver is dead.
            self._comm.send((what, content), dest=to, tag=tag)

    def _receive(self, *, tag: int) -> tuple[int, str, Any] | None:
        status = self._mpi.Status()
        with self._mpi_lock:
            if not self._comm.iprobe(source=self._mpi.ANY_SOURCE, tag=tag, status=status):
                return None
            what, content = self._comm.recv(source=status.Get_source(), tag=tag)
        return int(status.Get_source()), what, content

    def _ask(self) -> Answer:
        self._send("ask", None)
        deadline = time.monotonic() + self._lost_after_s
        while (answer := self._receive(tag=ANSWER)) is None:
            if time.monotonic() > deadline:
                raise RunFailed(f"rank 0 has not answered for {self._lost_after_s:g} s; it is lost")
            time.sleep(POLL_S)
        return Answer(*answer[2])

    def _beat_on(self) -> None:
        while not self._end.wait(self._lost_after_s / BEATS):
            self._send("beat", None)

    def _serve(self) -> None:
        """Run rank 0's thread: receive and answer messages, until rank 0 itself has finished and
        all other ranks are gone."""
        began = time.monotonic()
        heard = dict.fromkeys(range(1, self.size), began)
        gone = self._gone
        while not (self._end.is_set() and len(gone) == self.size - 1):
            message = self._receive(tag=REPORT)
            now = time.monotonic()
            if message is not None:
                rank, what, content = message
                heard[rank] = now
                gone.discard(rank)
                if what == "bye":
                    gone.add(rank)
                    self._lose(rank)
                elif what == "ask":
                    self._send("answer", tuple(self._book_answer(rank)), to=rank, tag=ANSWER)
                else:
                    self._hear(rank, what, content)
                continue
            for rank in [r for r, at in heard.items() if now - at > self._lost_after_s]:
                if rank not in gone:
                    gone.add(rank)
                    lost = self._lose(rank)
                    say(f"rank {rank} is silent: {len(lost)} unit(s) dealt again")
            time.sleep(SERVE_S)

    def _hear(self, rank: int, what: str, content: Any) -> None:
        with self._book_lock:
            if what == "add":
                self._adders.add(rank)
                self._added += content
                if self._book:
                    self._book.add(content)
            elif self._book is None or what == "beat":
                return
            elif what == "finish":
                self._book.finish(content)
            elif what == "give_back":
                self._book.give_back(rank, content)
            elif what == "fail":
                self._book.fail(rank, content)

    def _lose(self, rank: int) -> list[int]:
        with self._book_lock:
            return self._book.lose(rank) if self._book else []

    def _book_answer(self, rank: int) -> Answer:
        with self._book_lock:
            if self._stopped:
                left = self._book.num_left if self._book else 0
                return Answer(None, over=True, left=left, stopped=True)
            if self._book is None:
                return Answer(None, over=False, left=0, stopped=False)
            piece = self._book.deal(rank)
            all_said = len(self._adders | self._gone) == self.size
            over = piece is None and self._book.is_over and all_said
            return Answer(piece, over=over, left=self._book.num_left, stopped=False)

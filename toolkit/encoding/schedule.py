"""Which worker does which unit: alone, by claims on a shared file system, or dealt over MPI.

Knows units and whether they are on disk. Refuses to know what is done with a unit: a worker takes
units here until there are none, however they are shared (`Schedule`). So the work on a unit is the
same code in all three. No torch.
"""

import bisect
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from toolkit.base.errors import RunFailed
from toolkit.base.layout import LEASE_DIR, UNIT_DIR
from toolkit.cluster.leases import Leases
from toolkit.cluster.mpi import Dealing
from toolkit.cluster.topology import Topology
from toolkit.encoding.units import Unit
from toolkit.settings.schema import SharedRecipe

MANIFEST_LEASE = "manifest"
ALONE, CLAIM, MPI = "alone", "claim", "mpi"
MAX_ROUNDS = 5  # each makes the units again that were not whole at the end of the one before
MAX_MISSES = 8  # units that others took since we looked; after so many, look again
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 5.0
WAIT_GROWTH = 1.25  # who waits for a worker notices its end after a quarter more, at most
STOP_POLL_S = 0.2


def never() -> bool:
    """The default `give_up`: never give up waiting."""
    return False


def way_of(recipe: SharedRecipe, topology: Topology) -> str:
    """`ALONE`, `CLAIM` or `MPI`: what the recipe says, or else what the launcher suggests."""
    if recipe.schedule != "auto":
        return recipe.schedule
    return MPI if topology.launcher == "mpi" and topology.world_size > 1 else CLAIM


class Units(Protocol):
    """What is made in units, and which of them are on disk: vectors (`output.Output`), or whatever
    else is written whole, one unit at a time."""

    @property
    def directory(self) -> Path:
        """Where the units and the leases are."""

    @property
    def units(self) -> Sequence[Unit]:
        """All units, in the order of their rows."""

    def finished(self) -> set[str]:
        """The names of the units that have a marker and their files; no digest is checked."""

    def unfinished(self) -> list[Unit]:
        """The units without a marker or a file, in order."""

    def has_marker(self, unit: Unit) -> bool:
        """Whether the marker of this unit exists, and its files."""

    def forget(self, unit: Unit) -> None:
        """Remove a damaged unit's marker, so that the unit is made again."""

    def damaged(self, some: Iterable[Unit]) -> list[Unit]:
        """Those of `some` units that have a marker, but whose files are not what it says."""

    def write_manifest(self) -> list[Unit]:
        """Write the manifest if every unit is there; returns the units that are missing."""

    def is_in_manifest(self, names: Iterable[str]) -> bool:
        """Whether a whole manifest exists that repeats the markers of these units."""


class Schedule(Protocol):
    """Where a worker gets its units. One thread calls `take`; any thread calls the others."""

    def check(self, some: Sequence[Unit]) -> None:
        """Have those of `some` units made again that are on disk and damaged. Every worker calls
        this before all else."""

    def take(self, give_up: Callable[[], bool] = never) -> Unit | None:
        """The next unit; waits while others might still leave theirs. None when no unit is left,
        when we are told to stop, or when `give_up` says that nobody wants a unit any more."""

    def finish(self, unit: Unit) -> None:
        """Report that a unit that we took is on disk."""

    def give_back(self, unit: Unit) -> None:
        """Return a unit that we took, so that others can do it."""

    def fail(self, unit: Unit) -> None:
        """Report that a unit that we took could not be done here."""

    def holds(self, unit: Unit) -> bool:
        """Whether a unit is still ours, or was taken over because we were slow."""

    def num_left(self) -> int:
        """The number of units that are not on disk, as far as we know."""

    def stopped(self) -> bool:
        """Whether this worker, or all of them, were told to stop."""

    def close(self) -> bool:
        """Once no unit is left, have one worker write the manifest. Returns whether it is there; if
        not, there are units to take again."""


def until_whole(work: Schedule, do: Callable[[], None], *, directory: Path) -> int:
    """`do` what `work` gives until no unit is left; returns how many are, if we are told to stop.
    Raises `RunFailed` when units are not whole again and again."""
    num_rounds = 0
    while True:
        do()
        num_left = work.num_left()
        if num_left and work.stopped():
            return num_left
        # Closing may find damaged markers: then there are units to do again.
        if not num_left and work.close():
            return 0
        num_rounds += not num_left
        if num_rounds == MAX_ROUNDS:
            raise RunFailed(
                f"{directory / UNIT_DIR}: what is written there gets lost: after {num_rounds} "
                "rounds some units are not whole; choose another file system"
            )


class Alone:
    """One worker does all unfinished units, in order."""

    def __init__(self, output: Units, *, should_stop: Callable[[], bool]) -> None:
        self._output, self._should_stop = output, should_stop
        self._todo = deque(output.unfinished())
        self._num_left = len(self._todo)

    def check(self, some: Sequence[Unit]) -> None:
        """Take damaged units up again, behind all others."""
        self._add(self._output.damaged(some))

    def take(self, give_up: Callable[[], bool] = never) -> Unit | None:
        """The first unit that is left, or None."""
        gone = self._should_stop() or give_up()
        return self._todo.popleft() if self._todo and not gone else None

    def finish(self, unit: Unit) -> None:  # noqa: ARG002 (as the others)
        """Count the unit as done."""
        self._num_left -= 1

    def give_back(self, unit: Unit) -> None:
        """Do nothing: no other worker is there, so that the next run does the unit."""

    fail = give_back

    def holds(self, unit: Unit) -> bool:  # noqa: ARG002
        """True: nobody else takes units."""
        return True

    def num_left(self) -> int:
        """The number of units that were not yet counted as done."""
        return self._num_left

    def stopped(self) -> bool:
        """Whether this worker was told to stop."""
        return self._should_stop()

    def close(self) -> bool:
        """Write the manifest; units whose marker cannot be read are made again."""
        _remove_leases(self._output)
        missing = self._output.write_manifest()
        self._add(missing)
        return not missing

    def _add(self, units: Sequence[Unit]) -> None:
        for unit in units:
            self._output.forget(unit)
        self._todo.extend(units)
        self._num_left += len(units)


def _remove_leases(output: Units) -> None:
    """Remove what killed workers of an earlier run by claims left behind."""
    shutil.rmtree(output.directory / LEASE_DIR, ignore_errors=True)


class Dealt:
    """Rank 0 deals units by number over MPI."""

    def __init__(self, output: Units, *, dealing: Dealing, should_stop: Callable[[], bool]) -> None:
        self._output, self._dealing, self._should_stop = output, dealing, should_stop
        if dealing.rank == 0:
            dealing.deal([unit.number for unit in output.unfinished()])

    def check(self, some: Sequence[Unit]) -> None:
        """Report damaged units to rank 0, which deals them again."""
        damaged = self._output.damaged(some)
        for unit in damaged:
            self._output.forget(unit)
        self._dealing.add([unit.number for unit in damaged])

    def take(self, give_up: Callable[[], bool] = never) -> Unit | None:
        """Ask rank 0 for a unit. Raises `RunFailed` for units that failed on every rank."""
        number = self._dealing.take(lambda: self._should_stop() or give_up())
        if self._should_stop():
            self._dealing.stop()
        last = self._dealing.last
        if last.over and last.left and not last.stopped:
            raise RunFailed(f"{last.left} units failed on every rank that was asked; see above")
        return None if number is None else self._output.units[number]

    def finish(self, unit: Unit) -> None:
        """Tell rank 0 that the unit is done."""
        self._dealing.finish(unit.number)

    def give_back(self, unit: Unit) -> None:
        """Have rank 0 deal the unit again."""
        self._dealing.give_back(unit.number)

    def fail(self, unit: Unit) -> None:
        """Have rank 0 deal the unit again, unless it has failed too often."""
        self._dealing.fail(unit.number)

    def holds(self, unit: Unit) -> bool:  # noqa: ARG002
        """True: a rank is not told when it is taken for lost, and others write the same rows."""
        return True

    def num_left(self) -> int:
        """The number that rank 0 said last; before that, the units without a marker."""
        last = self._dealing.last
        return last.left if last.left or last.over else len(self._output.unfinished())

    def stopped(self) -> bool:
        """Whether we were told to stop, or rank 0 says that some rank was."""
        return self._dealing.last.stopped or self._should_stop()

    def close(self) -> bool:
        """Have rank 0 write the manifest. Raises `RunFailed` if a unit is damaged."""
        if self._dealing.rank != 0:
            return True
        _remove_leases(self._output)
        if missing := self._output.write_manifest():
            raise RunFailed(
                f"{missing[0].name} and perhaps others are damaged: run the same command again"
            )
        return True


class Claims:
    """Workers claim units, each by a lease: free units first, at the end also those whose owner's
    lease is stale.

    `first` is the number of the unit at which this worker begins: workers that begin far apart
    seldom want the same unit.
    """

    def __init__(
        self, output: Units, *, leases: Leases, first: int, should_stop: Callable[[], bool]
    ) -> None:
        self._output, self._leases, self._should_stop = output, leases, should_stop
        self._first = first
        self._candidates: deque[tuple[Unit, int | None]] = deque()
        self._made: set[str] = set()

    def check(self, some: Sequence[Unit]) -> None:
        """Forget each damaged unit under its lease, so that no new marker is taken for the old."""
        for unit in self._output.damaged(some):
            if self._lease(unit.name):
                for damaged in self._output.damaged([unit]):
                    self._output.forget(damaged)
                self._leases.give_back(unit.name)

    def take(self, give_up: Callable[[], bool] = never) -> Unit | None:
        """Claim a candidate; look at the directory for new ones when there are none left."""
        wait_s = FIRST_WAIT_S
        while not (self._should_stop() or give_up()):
            if unit := self._claim_one():
                return unit
            if not self._look():
                return None
            if self._candidates[0][1] is not None:  # others hold all that is left
                if unit := self._claim_one():
                    return unit
                self._sleep(wait_s)
                wait_s = min(WAIT_GROWTH * wait_s, LONGEST_WAIT_S)
        return None

    def finish(self, unit: Unit) -> None:
        """Give the lease back, since there is a marker now; check the unit if it was taken over."""
        ours = self._leases.holds(unit.name)
        self._leases.give_back(unit.name)
        if ours:
            self._made.add(unit.name)
        else:  # taken over while we wrote: with unlike processors, files of both may be mixed
            self.check([unit])

    def give_back(self, unit: Unit) -> None:
        """Give the lease back, so that any worker can claim the unit."""
        self._leases.give_back(unit.name)

    fail = give_back

    def holds(self, unit: Unit) -> bool:
        """Whether the lease of the unit is still ours."""
        return self._leases.holds(unit.name)

    def num_left(self) -> int:
        """The number of units without a marker."""
        return len(self._output.unfinished())

    def stopped(self) -> bool:
        """Whether this worker was told to stop."""
        return self._should_stop()

    def close(self) -> bool:
        """Write the manifest, or wait until the worker that has its lease has written it. A worker
        whose units are all in the manifest need not wait."""
        wait_s = FIRST_WAIT_S
        while True:
            is_there = self._output.is_in_manifest(self._made)
            if is_there and not self._leases.taken():
                return True
            if self._lease(MANIFEST_LEASE):
                missing = [] if is_there else self._output.write_manifest()
                if not missing:
                    self._leases.clear()
                self._leases.give_back(MANIFEST_LEASE)
                self.check(missing)  # a marker that cannot be read, or has just been taken away
                return not missing
            if is_there or self._should_stop():  # somebody else is writing it
                return True
            self._sleep(wait_s)
            wait_s = min(WAIT_GROWTH * wait_s, LONGEST_WAIT_S)

    def _lease(self, name: str) -> bool:
        return self._leases.take(name, generation=self._leases.taken().get(name))

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._should_stop():
            time.sleep(min(left, STOP_POLL_S))

    def _look(self) -> bool:
        """Look for candidates; returns whether any unit is missing that we do not hold."""
        # Leases first: one that is given back between the two looks has left a marker.
        taken = self._leases.taken()
        open_units = self._output.unfinished()
        first = bisect.bisect_left(open_units, self._first, key=lambda unit: unit.number)
        missing = [
            unit
            for unit in [*open_units[first:], *open_units[:first]]
            if not self._leases.holds(unit.name)
        ]
        free = [unit for unit in missing if unit.name not in taken]
        self._candidates = deque((unit, taken.get(unit.name)) for unit in free or missing)
        return bool(missing)

    def _claim_one(self) -> Unit | None:
        misses = 0
        while self._candidates and (misses < MAX_MISSES or self._candidates[0][1] is not None):
            unit, generation = self._candidates.popleft()
            if not self._leases.take(unit.name, generation=generation):
                misses += 1
            elif self._output.has_marker(unit):
                self._leases.give_back(unit.name)  # finished since we looked
            else:
                return unit
        self._candidates.clear()
        return None

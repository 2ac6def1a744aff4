"""A worker's share of an output that is made in units: how it joins, works, stops, and ends.

Knows launchers, ways of sharing, and rounds of work until every unit is whole. Refuses to know what
is done with a unit (`Work`).
"""

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Protocol

from toolkit.base.console import say
from toolkit.base.layout import LEASE_DIR
from toolkit.cluster.leases import Leases
from toolkit.cluster.mpi import Dealing
from toolkit.cluster.preempt import StopSignal
from toolkit.cluster.topology import Topology, detect, worker_of
from toolkit.encoding import schedule
from toolkit.encoding.schedule import Alone, Claims, Dealt, Schedule, Units
from toolkit.encoding.units import share
from toolkit.settings.schema import SharedRecipe


class Work(Protocol):
    """What is made of units. `name` begins every line for people."""

    name: str

    def open(self, *, topology: Topology, verify: bool) -> Units:
        """Open the inputs, comparing every byte if `verify`, and claim the output directory. Raises
        `BadInput` before anything is written when something cannot be used."""

    def do(self, work: Schedule) -> None:
        """Do the units that `work` gives, until it gives none."""

    def tell(self) -> None:
        """Say what the whole output is, once it is there."""


def run_shared(work: Work, recipe: SharedRecipe, *, environ: Mapping[str, str]) -> None:
    """Do those of the units that are not finished, together with any other workers. The recipe says
    how they share them."""
    # Importing torch takes seconds, in which a signal would otherwise end the process.
    with StopSignal(environ) as stop:
        topology = detect(environ)
        # `_share` gives leases back and lets other ranks go, before the job waits to be requeued.
        num_left = _share(work, recipe, topology=topology, environ=environ, stop=stop)
        if num_left:
            say(f"{work.name}: told to stop; {num_left} units are left")
            stop.leave(environ, leads=topology.rank == 0)


def _share(
    work: Work,
    recipe: SharedRecipe,
    *,
    topology: Topology,
    environ: Mapping[str, str],
    stop: StopSignal,
) -> int:
    """Work until nothing is left or we are told to stop; returns the number of units left."""

    def should_stop() -> bool:
        return stop.received

    way = schedule.way_of(recipe, topology)
    index, count = worker_of(topology, environ=environ)
    with contextlib.ExitStack() as entered:
        if way == schedule.MPI:
            num_ranks = topology.world_size if topology.launcher == "mpi" else None
            dealing = Dealing(lost_after_s=recipe.lease_s, num_ranks=num_ranks)
            entered.enter_context(dealing)
        output = work.open(topology=topology, verify=index == 0)
        dealt: Schedule
        if way == schedule.MPI:
            dealt = Dealt(output, dealing=dealing, should_stop=should_stop)
        elif way == schedule.CLAIM:
            leases = Leases(output.directory / LEASE_DIR, lease_s=recipe.lease_s)
            first = index * len(output.units) // count
            entered.enter_context(leases)
            dealt = Claims(output, leases=leases, first=first, should_stop=should_stop)
        else:
            dealt = Alone(output, should_stop=should_stop)
        # Each worker checks a share: together they read all finished units once.
        dealt.check(share(list(output.units), index=index, count=count))
        num_done = len(output.finished())
        say(
            f"{work.name}: {_name(way, index=index, count=count)}: {len(output.units)} units, "
            f"{num_done} done"
        )
        num_left = schedule.until_whole(dealt, lambda: work.do(dealt), directory=output.directory)
        if num_left:
            return num_left
        if way != schedule.MPI or topology.rank == 0:
            work.tell()
        return 0


def _name(way: str, *, index: int, count: int) -> str:
    """The name of a worker. One that a person starts by hand knows of no other workers."""
    if way == schedule.CLAIM and count == 1:
        return f"worker {socket.gethostname()}:{os.getpid()} ({way})"
    return f"worker {index + 1} of {count} ({way})"

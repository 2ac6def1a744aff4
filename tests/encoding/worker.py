"""A worker without a model: it takes units as the recipe's `schedule` says, and makes their vectors
of their row numbers. Prints a line a unit.

    python -m tests.encoding.worker WAY DIRECTORY '{"rows": 60, "unit_rows": 2, "unit_s": 0.05}'

Further settings: lease_s, first, fail (a list of units that it cannot do), check (from, to, after
late_s), stop_after_s, and hang_at (its own so many-th unit) for hang_s.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.encoding.making import output_of
from toolkit.base.layout import LEASE_DIR
from toolkit.cluster.leases import Leases
from toolkit.cluster.mpi import Dealing
from toolkit.encoding.schedule import Alone, Claims, Dealt, Schedule
from toolkit.encoding.units import Unit

WIDTH = 8


def vectors_of(start: int, stop: int) -> NDArray[np.float32]:
    """What every worker makes of these rows."""
    return np.arange(start * WIDTH, stop * WIDTH, dtype=np.float32).reshape(-1, WIDTH)


def records_of(unit: Unit) -> list[dict[str, str]]:
    """Ids and titles that tell the row."""
    return [{"id": f"id{n}", "title": f"T{n}"} for n in range(unit.start, unit.stop)]


def hang(seconds: float) -> None:
    """SIGSTOP: no thread of ours runs, until another process lets us on."""
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def main(way: str, directory: Path, settings: dict[str, float]) -> None:
    """Take and write units until there are none."""
    deadline = time.monotonic() + settings.get("stop_after_s", float("inf"))
    lease_s = settings.get("lease_s", 5.0)
    with contextlib.ExitStack() as entered:
        dealing = entered.enter_context(Dealing(lost_after_s=lease_s)) if way == "mpi" else None
        output = output_of(
            directory, rows=int(settings["rows"]), unit_rows=int(settings["unit_rows"])
        )

        def should_stop() -> bool:
            return time.monotonic() > deadline

        work: Schedule = Alone(output, should_stop=should_stop)
        if dealing:
            work = Dealt(output, dealing=dealing, should_stop=should_stop)
        elif way == "claim":
            leases = entered.enter_context(Leases(directory / LEASE_DIR, lease_s=lease_s))
            first = int(settings.get("first", 0))
            work = Claims(output, leases=leases, first=first, should_stop=should_stop)
        time.sleep(settings.get("late_s", 0))
        work.check(output.units[slice(*settings.get("check", [0, 0]))])  # type: ignore[misc]
        fail, num_done = settings.get("fail", []), 0
        while True:
            while unit := work.take():
                print(f"unit {unit.number} by {dealing.rank if dealing else 0}", flush=True)
                time.sleep(settings["unit_s"])
                num_done += 1
                if num_done == settings.get("hang_at"):
                    hang(settings["hang_s"])
                if unit.number in fail:  # type: ignore[operator]
                    work.fail(unit)
                    raise RuntimeError(f"unit {unit.number} failed")
                if work.holds(unit):
                    vectors_RD = vectors_of(unit.start, unit.stop)
                    output.write(unit, vectors_RD, records_of(unit))
                work.finish(unit)
            if work.num_left():
                raise SystemExit(f"{work.num_left()} left, stopped: {work.stopped()}")
            if work.close():
                return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))

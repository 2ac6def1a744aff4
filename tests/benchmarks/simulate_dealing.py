"""A thousand workers under the real book (`toolkit.cluster.dealing.Book`), on a simulated clock.

    python -m tests.benchmarks.simulate_dealing --plot tests/benchmarks/dealing.svg

Speeds are spread from 0.5 to 2 units of work a second; a unit has 0.9 to 1.1 of it. A worker has
one unit more than it is at, as the pipeline has, whose reader is ahead of its model. A tenth of the
workers dies at a random time of the ideal run, with what it has; that is noticed two seconds later,
and dealt again. Another tenth comes late, at a random time of its first half.

The ideal is all the work done at all the speed that is there at each moment. Beside it: a share
that is fixed beforehand, every count-th unit, on workers that all live and are all there.
"""

import argparse
import dataclasses
import heapq
import math
import random
import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from toolkit.cluster.dealing import Book

SLOWEST, FASTEST = 0.5, 2.0
MISSED_AFTER_S = 2.0
LOST = LATE = 0.1
UNITS = (10, 20, 50, 100, 200, 400)  # a worker
SEEDS = 5


@dataclasses.dataclass(frozen=True)
class Crew:
    """Workers: how fast each is, when it comes, when it dies; and the work of each piece."""

    speed: Sequence[float]
    comes_s: Sequence[float]
    dies_s: Sequence[float]
    work: Sequence[float]

    def ideal_s(self) -> float:
        """When all work is done if no speed is ever idle."""
        total, low, high = sum(self.work), 0.0, 1e9
        for _ in range(100):
            middle = (low + high) / 2
            there = (
                speed * max(0.0, min(dies, middle) - comes)
                for speed, comes, dies in zip(self.speed, self.comes_s, self.dies_s, strict=True)
            )
            low, high = (middle, high) if sum(there) < total else (low, middle)
        return high


def crew_of(*, num_workers: int, units: int, seed: int, troubles: bool) -> Crew:
    """A random crew with `units` pieces a worker."""
    rng = random.Random(seed)
    speed = [rng.uniform(SLOWEST, FASTEST) for _ in range(num_workers)]
    work = [rng.uniform(0.9, 1.1) for _ in range(num_workers * units)]
    comes, dies = [0.0] * num_workers, [math.inf] * num_workers
    if troubles:
        whole_s = sum(work) / sum(speed)
        marked = rng.sample(range(num_workers), int((LOST + LATE) * num_workers))
        for place, worker in enumerate(marked):
            if place < LOST * num_workers:
                dies[worker] = rng.uniform(0, whole_s)
            else:
                comes[worker] = rng.uniform(0, whole_s / 2)
    return Crew(speed, comes, dies, work)


def makespan_s(crew: Crew, *, ahead: int = 1) -> tuple[float, int]:
    """When the last piece is done, and how many were dealt again. `ahead` is how many pieces a
    worker has beside the one that it is at."""
    book = Book(range(len(crew.work)))
    has: list[deque[int]] = [deque() for _ in crew.speed]
    events = [(comes, worker, "comes") for worker, comes in enumerate(crew.comes_s)]
    heapq.heapify(events)
    hungry: set[int] = set()
    now, dealt_again = 0.0, 0

    def fill(worker: int) -> None:
        idle = not has[worker]
        while len(has[worker]) <= ahead and (piece := book.deal(worker)) is not None:
            has[worker].append(piece)
        (hungry.discard if len(has[worker]) > ahead else hungry.add)(worker)
        if idle and has[worker]:
            begin(worker)

    def begin(worker: int) -> None:
        done = now + crew.work[has[worker][0]] / crew.speed[worker]
        if done < crew.dies_s[worker]:
            heapq.heappush(events, (done, worker, "done"))
        else:
            heapq.heappush(events, (crew.dies_s[worker] + MISSED_AFTER_S, worker, "missed"))

    while not book.is_over:
        now, worker, what = heapq.heappop(events)
        if what == "missed":
            has[worker].clear()
            hungry.discard(worker)
            dealt_again += len(book.lose(worker))
            for other in sorted(hungry):
                fill(other)
            continue
        if what == "done":
            book.finish(has[worker].popleft())
            if has[worker]:
                begin(worker)
        if now < crew.dies_s[worker]:
            fill(worker)
    return now, dealt_again


def fixed_share_s(crew: Crew) -> float:
    """When the last of these workers is done with every count-th piece, if none dies or is late."""
    count = len(crew.speed)
    return max(sum(crew.work[w::count]) / speed for w, speed in enumerate(crew.speed))


def figures(*, num_workers: int, units: int, seeds: int) -> dict[str, float]:
    """Medians over seeds: makespan over the ideal, dealt and by a fixed share, and the seconds."""
    dealt, fixed, again = [], [], []
    for seed in range(seeds):
        crew = crew_of(num_workers=num_workers, units=units, seed=seed, troubles=True)
        seconds, num_again = makespan_s(crew)
        dealt.append(seconds / crew.ideal_s())
        again.append(num_again)
        calm = crew_of(num_workers=num_workers, units=units, seed=seed, troubles=False)
        fixed.append(fixed_share_s(calm) / calm.ideal_s())
    return {
        "units a worker": units,
        "dealt": statistics.median(dealt),
        "dealt, worst": max(dealt),
        "dealt again": statistics.median(again),
        "fixed share": statistics.median(fixed),
    }


def draw(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Makespan over the ideal against units a worker."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    units = [row["units a worker"] for row in rows]
    for name, colour in (("dealt", "#4878d0"), ("fixed share", "#d65f5f")):
        axes.plot(units, [row[name] for row in rows], "o-", color=colour, label=name)
    axes.axhline(1.05, color="grey", linestyle=":", label="5 % above the ideal")
    axes.set(xscale="log", yscale="log", xlabel="units a worker", ylabel="makespan / ideal")
    axes.set_xticks(units, [str(int(one)) for one in units])
    axes.set_yticks([1, 1.05, 1.2, 1.5, 2, 2.5], ["1", "1.05", "1.2", "1.5", "2", "2.5"])
    axes.minorticks_off()
    axes.legend(frameon=False)
    with matplotlib.rc_context({"svg.hashsalt": "dealing"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table, and draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--units", type=int, nargs="+", default=UNITS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--plot", type=Path, help="an .svg or .png to draw into")
    arguments = parser.parse_args(argv)
    rows = []
    print("| units a worker | makespan / ideal | worst seed | units dealt again | fixed share |")
    print("|---|---|---|---|---|")
    for units in arguments.units:
        rows.append(figures(num_workers=arguments.workers, units=units, seeds=arguments.seeds))
        one = rows[-1]
        print(
            f"| {units} | {one['dealt']:.4f} | {one['dealt, worst']:.4f} | "
            f"{one['dealt again']:.0f} | {one['fixed share']:.3f} |",
            flush=True,
        )
    if arguments.plot:
        draw(rows, arguments.plot)


if __name__ == "__main__":
    main()

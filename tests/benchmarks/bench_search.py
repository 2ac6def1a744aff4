"""The exact search beside numpy's product alone, over the same mapped vectors.

    python -m tests.benchmarks.bench_search [--rows 200000] [--width 1024] [--queries 64]

Random fp32 vectors in units of 4,096 rows, in the page cache. numpy multiplies the queries with one
large memory map of all rows, and throws the result away, a piece of 4,096 rows at a time. In turn;
medians, of the clock and of the processors.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.benchmarks.harness import machine
from tests.encoding.making import output_of
from toolkit.encoding.formats import unit_length
from toolkit.encoding.search import nearest_rows
from toolkit.encoding.store import VectorStore

UNIT_ROWS, TOP = 4096, 10


def main(argv: Sequence[str] | None = None) -> None:
    """Print seconds and the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("rows", 200_000), ("width", 1024), ("queries", 64), ("runs", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    query = unit_length(rng.standard_normal((arguments.queries, arguments.width), dtype=np.float32))
    with tempfile.TemporaryDirectory() as name:
        output = output_of(Path(name) / "enc", rows=arguments.rows, unit_rows=UNIT_ROWS)
        shape = (arguments.rows, arguments.width)
        mapped = np.memmap(Path(name) / "all", dtype=np.float32, mode="w+", shape=shape)
        for unit in output.units:
            rows = unit.stop - unit.start
            part = rng.standard_normal((rows, arguments.width), dtype=np.float32)
            mapped[unit.start : unit.stop] = part
            output.write(
                unit, part, [{"id": str(n), "title": ""} for n in range(unit.start, unit.stop)]
            )
        output.write_manifest()
        store = VectorStore(output.directory)

        def product() -> None:
            for start in range(0, arguments.rows, UNIT_ROWS):
                query @ mapped[start : start + UNIT_ROWS].T

        def search() -> None:
            nearest_rows(store, queries_QD=query, top=TOP)

        ways: dict[str, Callable[[], None]] = {"numpy's product": product, "exact search": search}
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(arguments.runs + 1):  # the first is thrown away
            for way, do in ways.items():
                began, cpu_began = time.perf_counter(), time.process_time()
                do()
                found[way].append((time.perf_counter() - began, time.process_time() - cpu_began))
    print(f"{arguments.rows:,} x {arguments.width}, {arguments.queries} queries; {machine()}")
    for place, clock in enumerate(("clock", "processors")):
        seconds = {
            w: statistics.median(run[place] for run in runs[1:]) for w, runs in found.items()
        }
        told = ", ".join(f"{way} {value:.3f} s" for way, value in seconds.items())
        ratio = statistics.median(
            theirs[place] / ours[place]
            for theirs, ours in zip(*(r[1:] for r in found.values()), strict=True)
        )
        print(f"{clock}: {told}: {ratio:.0%} of its speed", flush=True)


if __name__ == "__main__":
    main()

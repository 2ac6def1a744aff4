"""What units cost beside their vectors: the plan of 100 M rows, and taking and finishing a unit.

    python -m tests.benchmarks.bench_scheduling [--rows 100000000] [--units 4000]

The rows are synthetic: lengths alone, log-normal; a unit's files are markers without vectors.
"open" is what a worker does before its first unit (identity, plan.json, a look at all
markers), "read" is what a reader of the finished encoding does. The cost of a unit is that of take,
holds and finish of units of 5 ms, which are not counted, over real leases on the disk at hand, of
one process and of several at once, or of real messages over MPI, of the ranks that ask rank 0.
"""

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tests.encoding.making import output_of
from tests.mpi import mpi_command
from toolkit.base.layout import UNIT_DIR
from toolkit.cluster.leases import Leases
from toolkit.cluster.mpi import Dealing
from toolkit.encoding.formats import encode
from toolkit.encoding.output import FACTS, Output, unit_files
from toolkit.encoding.schedule import LEASE_DIR, Claims, Dealt, Schedule
from toolkit.encoding.store import VectorStore
from toolkit.encoding.units import claim_directory, identity, units
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EmbedRecipe

UNIT_S = 0.005


def never() -> bool:
    """Nobody tells us to stop."""
    return False


def plan_figures(folder: Path, *, rows: int) -> dict[str, float]:
    """Seconds of each part of a plan of so many rows, of the clock and of the processor, and peak
    memory in GiB."""
    given = [f"output_dir={folder / 'enc'}", "encoder.dtype=bf16"]
    recipe = load_recipe("embed_corpus", overrides=given)
    assert isinstance(recipe, EmbedRecipe)
    rng = np.random.default_rng(0)
    num_chars_N = np.empty(rows, dtype=np.int64)
    for start in range(0, rows, 10**6):
        part = num_chars_N[start : start + 10**6]
        part[:] = np.minimum(rng.lognormal(6, 1.5, size=len(part)), 10**6)
    found: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        began, cpu_began = time.perf_counter(), time.process_time()
        yield
        found[name] = time.perf_counter() - began
        found[f"{name}, processor"] = time.process_time() - cpu_began

    def open_plan() -> Output:
        facts = identity(recipe, corpus_digest="c", model_digest="m", num_chars_N=num_chars_N)
        claim_directory(folder / "enc", facts=facts, model="m", corpus="c")
        output = Output(folder / "enc", facts["digest"], units(facts["bounds"]))
        output.unfinished()
        return output

    with timed("make the plan"):
        output = open_plan()
    (folder / "enc" / UNIT_DIR).mkdir()
    for unit in output.units:
        # Not synced, unlike a real one; the manifest reads no vector.
        files, num_rows = unit_files(folder / "enc", unit=unit), unit.stop - unit.start
        files.vectors.write_bytes(encode(np.ones((num_rows, 1), dtype=np.float32), form="fp32"))
        ids = [str(row) for row in range(unit.start, unit.stop)]
        facts = {"id": ids, "title": ids, "empty": [False] * num_rows}
        pq.write_table(pa.table(facts, schema=FACTS), files.ids, compression="zstd")
        digests = {files.vectors.name: "0" * 64, files.ids.name: "0" * 64}
        marker = {"encoding": output.digest, "start": unit.start, "sha256": digests}
        files.marker.write_text(json.dumps({**marker, "rows": num_rows, "width": 1}))
    with timed("open"):
        output = open_plan()
    assert output.unfinished() == []
    with timed("write the manifest"):
        assert output.write_manifest() == []
    with timed("read"):
        assert VectorStore(folder / "enc").num_rows == rows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {**found, "peak GiB": peak, "units": len(output.units)}


def unit_seconds(work: Schedule, output: Output) -> list[tuple[float, float]]:
    """Of each unit that this worker gets: take, holds and finish, but not the writing of its files;
    of the clock and of this thread's processor."""
    found = []

    def now() -> NDArray[np.float64]:
        return np.array([time.perf_counter(), time.thread_time()])

    while True:
        began = now()
        unit = work.take()
        taken = now()
        if unit is None:
            return found
        time.sleep(UNIT_S)
        for path in vars(unit_files(output.directory, unit=unit)).values():
            path.touch()
        written = now()
        assert work.holds(unit)
        work.finish(unit)
        found.append(tuple((taken - began + now() - written).tolist()))


def worker(way: str, directory: Path, *, num_units: int, first: int) -> None:
    """One of several: print what its units cost."""
    if way == "mpi":
        with Dealing(lost_after_s=60) as dealing:
            output = output_of(directory, rows=num_units, unit_rows=1)
            dealt = Dealt(output, dealing=dealing, should_stop=never)
            dealt.check([])
            found = unit_seconds(dealt, output)
            if dealing.rank == 0:  # which asks itself
                found = []
    else:
        output = output_of(directory, rows=num_units, unit_rows=1)
        with Leases(directory / LEASE_DIR, lease_s=60) as leases:
            found = unit_seconds(
                Claims(output, leases=leases, first=first, should_stop=never), output
            )
    print("took", json.dumps(found), flush=True)


def cost(way: str, *, workers: int, num_units: int) -> dict[str, float]:
    """Milliseconds a unit of so many workers at once: median, and of the slowest hundredth."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "enc"
        output_of(folder, rows=num_units, unit_rows=1)
        (folder / UNIT_DIR).mkdir()
        commands = [
            [sys.executable, "-m", "tests.benchmarks.bench_scheduling"]
            + ["--worker", way, str(folder), str(index * num_units // workers)]
            + ["--units", str(num_units)]
            for index in range(workers)
        ]
        if way == "mpi":
            commands = [mpi_command(commands)]
        started = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for line in commands]
        printed = "".join(process.communicate()[0] for process in started)
        assert all(process.returncode == 0 for process in started)
        told = (line.removeprefix("took") for line in printed.splitlines() if "took" in line)
        found = [pair for line in told for pair in json.loads(line)]
        wall_ms, cpu_ms = ([1000 * seconds for seconds in one] for one in zip(*found, strict=True))
        hundredth = sorted(wall_ms)[int(0.99 * len(wall_ms))]
        return {
            "median": statistics.median(wall_ms),
            "99 %": hundredth,
            "processor": statistics.mean(cpu_ms),
        }


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--units", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=4, help="at once")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        way, directory, first = arguments.worker
        worker(way, Path(directory), num_units=arguments.units, first=int(first))
        return
    with tempfile.TemporaryDirectory() as name:
        for what, value in plan_figures(Path(name), rows=arguments.rows).items():
            print(f"{what}: {value:,.2f}", flush=True)
    for way, workers in (("claim", 1), ("claim", arguments.workers), ("mpi", arguments.workers)):
        told = cost(way, workers=workers, num_units=arguments.units)
        print(
            f"{way}, {workers} worker(s): {told['median']:.2f} ms a unit, of the slowest hundredth "
            f"{told['99 %']:.2f} ms, {told['processor']:.2f} ms of the processor",
            flush=True,
        )


if __name__ == "__main__":
    main()

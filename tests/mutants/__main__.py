"""Plant every fault, one at a time, and see that its tests notice.

    python -m tests.mutants [--only NAME|FILE|TEST|LIST ...] [--jobs 1] [--again] [--write]

Each result is appended to a file (--out) at once. A fault is not tried again while its text, its
source and its tests are unchanged, unless with --again. Exit codes: 0 all caught, 1 some not.
"""

import argparse
import dataclasses
import json
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.mutants.bench import CAUGHT, USELESS, Bench, Result
from tests.mutants.catalogue import LISTS, ROOT, Fault, all_faults, chosen

RESULTS = LISTS / "RESULTS.md"
OUT = ROOT / "build" / "mutants.jsonl"  # which git ignores


def main(argv: Sequence[str] | None = None) -> int:
    """Try the faults that the command line chooses; returns the exit code."""
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", default=[], help="a name, file, test or list")
    parser.add_argument(
        "--jobs", type=int, default=1, help="faults tried at a time, each in its own copy"
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, help="file of results, one JSON object per line"
    )
    parser.add_argument("--again", action="store_true", help="also try faults that have a result")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument(
        "--table", action="store_true", help="only write the table, from known results"
    )
    parser.add_argument("--list", action="store_true", help="print the names only")
    arguments = parser.parse_args(argv)
    # Raise SystemExit, so that `finally` removes the copies.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    every = all_faults()
    try:
        faults = chosen(every, only=arguments.only)
    except ValueError as error:
        parser.error(str(error))
    if arguments.list:
        print("\n".join(fault.name for fault in faults))
        return 0
    results = read_results(arguments.out)
    if arguments.table:
        write_table(every, results)
        return 0
    todo = [fault for fault in faults if arguments.again or not _is_known(fault, results)]
    print(f"{len(faults)} faults, {len(faults) - len(todo)} have a result", flush=True)
    began = time.monotonic()
    for result in try_all(todo, jobs=arguments.jobs):
        results[result.name] = result
        keep(result, out=arguments.out)
    for result in confirmed([results[fault.name] for fault in faults]):
        results[result.name] = result
        keep(result, out=arguments.out)
    bad = [one for fault in faults if not (one := results[fault.name]).confirmed]
    for one in bad:
        print(f"{one.name}: {one.outcome} {one.by}")
    num_caught = len(faults) - len(bad)
    print(f"{num_caught} of {len(faults)} caught, {time.monotonic() - began:,.0f} s")
    if arguments.write:
        write_table(every, results)
    return 1 if bad else 0


def try_all(faults: Sequence[Fault], *, jobs: int) -> Iterator[Result]:
    """Try faults; yields each result as it comes, and prints a line of progress."""
    waiting: queue.SimpleQueue[Fault] = queue.SimpleQueue()
    done: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()
    for fault in faults:
        waiting.put(fault)
    benches = [Bench() for _ in range(min(jobs, len(faults)))]

    def work(bench: Bench) -> None:
        try:
            while True:
                done.put(bench.try_fault(waiting.get_nowait()))
        except queue.Empty:
            return
        except BaseException as error:
            done.put(error)

    try:
        for bench in benches:
            threading.Thread(target=work, args=(bench,), daemon=True).start()
        for number in range(1, len(faults) + 1):
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            where = f"[{number}/{len(faults)}] {result.name}"
            print(f"{where}: {result.outcome}, {result.seconds:.1f} s {result.by}", flush=True)
            yield result
    finally:
        for bench in benches:
            bench.close()


def confirmed(results: Sequence[Result]) -> list[Result]:
    """Confirm results that are not confirmed yet: a test that also fails without a fault catches
    nothing."""
    asked = [one for one in results if one.outcome == CAUGHT and not one.confirmed]
    if not asked:
        return []
    tests = {one.by for one in asked}
    print(
        f"{len(asked)} were caught: do these {len(tests)} tests pass without a fault?", flush=True
    )
    bench = Bench()
    try:
        passing, failing = bench.passing(tests)
    finally:
        bench.close()
    return [
        *(dataclasses.replace(one, confirmed=True) for one in asked if one.by in passing),
        *(dataclasses.replace(one, outcome=USELESS) for one in asked if one.by in failing),
    ]


def keep(result: Result, *, out: Path) -> None:
    """Append a result to the file of results."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(dataclasses.asdict(result)) + "\n")


def read_results(path: Path) -> dict[str, Result]:
    """The last result of each fault."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [Result(**json.loads(line)) for line in lines]
    return {row.name: row for row in rows}


def _is_known(fault: Fault, results: Mapping[str, Result]) -> bool:
    return fault.name in results and results[fault.name].state == fault.state(ROOT)


def write_table(every: Sequence[Fault], results: Mapping[str, Result]) -> None:
    """Write RESULTS.md from results that are true of the source and the tests as they are."""
    known = {fault.name: results[fault.name] for fault in every if _is_known(fault, results)}
    RESULTS.write_text(table(every, known), encoding="utf-8")
    print(f"{RESULTS.relative_to(ROOT)}: {len(known)} of {len(every)} faults")


def table(faults: Sequence[Fault], results: Mapping[str, Result]) -> str:
    """All faults and the tests that caught them, as Markdown."""
    num_caught = sum(one.confirmed for one in results.values())
    files = {fault.file for fault in faults}
    summary = f"{num_caught} of {len(faults)} are caught, in {len(files)} source files"
    if untried := len(faults) - len(results):
        summary += f"; {untried} have not been tried with the source and the tests as they are"
    lines = [
        "# Planted faults and the tests that notice\n",
        f"{summary}. Written by `make test-mutants`; what the faults are stands in the lists "
        "beside this file.\n",
        "| fault | source | caught by |",
        "|---|---|---|",
    ]
    for fault in faults:
        one = results.get(fault.name, Result(fault.name, "not tried"))
        by = f"`{one.by}`" if one.confirmed else f"**{one.outcome}, not confirmed** {one.by}"
        by = by.replace("|", "\\|").replace("tests/", "", 1)
        lines.append(f"| {fault.name} | `{fault.file}` | {by} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

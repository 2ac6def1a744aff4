"""Commands timed side by side: in turn, several times, each as a whole process with its children.

A machine drifts; a ratio of runs that stand next to each other does not. Medians, never the best.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
REAL_DATA = Path(os.environ.get("TOOLKIT_REAL_DATA", ROOT.parent / "shared" / "data"))


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: seconds on the clock and of all processors, peak memory of the largest process, and
    what the last line of output said, if that was JSON."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    said: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Contender:
    """A command, and what to do before each of its runs, untimed."""

    name: str
    command: Sequence[str]
    prepare: Callable[[], None] = lambda: None
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)


def run_once(contender: Contender) -> Run:
    """Run to the end; an error shows what was printed."""
    contender.prepare()
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **contender.environ}
    began = time.perf_counter()
    process = subprocess.Popen(
        list(contender.command), cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
    reader.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    reader.join()
    if process.returncode:
        raise RuntimeError(f"{contender.name} failed:\n{''.join(lines[-30:])}")
    last = lines[-1].strip() if lines else ""
    said = json.loads(last) if last.startswith("{") else {}
    return Run(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, said)


def compare(contenders: Sequence[Contender], *, runs: int, warmup: int = 1) -> dict[str, list[Run]]:
    """All contenders in turn, `warmup` + `runs` times; the warm-up is thrown away. A single run is
    a trial and has none."""
    found: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
    warmup = warmup if runs > 1 else 0
    for number in range(warmup + runs):
        for contender in contenders:
            run = run_once(contender)
            print(
                f"{contender.name:>28} {number}: {run.wall_s:8.2f} s, {run.cpu_s:8.2f} s of "
                f"processors, {run.peak_mib:7.0f} MiB  {json.dumps(run.said)}",
                file=sys.stderr,
                flush=True,
            )
            if number >= warmup:
                found[contender.name].append(run)
    return found


def table(
    found: Mapping[str, Sequence[Run]], *, figures: Mapping[str, Callable[[Run], float]]
) -> str:
    """Markdown: a row a contender, a figure's median a column; and how many times the first row's
    figure is of each one's, by the median of ratios of runs side by side."""
    names = list(found)
    heads = [head for figure in figures for head in (figure, "ours / this")]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for name in names:
        cells = []
        for figure in figures.values():
            values = [figure(run) for run in found[name]]
            ours = [figure(run) for run in found[names[0]]]
            ratio = statistics.median(a / b for a, b in zip(ours, values, strict=True))
            cells += [f"{statistics.median(values):,.2f}", f"{ratio:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def options(
    about: str | None, *, peers: str | None = None, needed: bool = False
) -> argparse.ArgumentParser:
    """The command line of a benchmark on real data; `peers` is what a Python of others must have,
    where they need one of their own."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--data", type=Path, default=REAL_DATA)
    parser.add_argument("--runs", type=int, default=5)
    if peers:
        parser.add_argument("--peers", required=needed, help=f"a Python that has {peers}")
    return parser


def make_shards(source: Path, *, output: Path) -> None:
    """Shards of a file of texts."""
    script = [sys.executable, "data_scripts/shard_wikipedia.py", "--input", str(source)]
    script += ["--output", str(output)]
    subprocess.run(script, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def machine() -> str:
    """What it ran on, in a line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown processor",
    )
    return f"{os.cpu_count()} x {model}, Python {sys.version.split()[0]}"

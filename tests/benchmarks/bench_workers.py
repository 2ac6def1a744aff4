"""One worker, and two by each way of sharing units: text on the disk to vectors on the disk.

    python -m tests.benchmarks.bench_workers --runs 5

The shipped tiny model in fp32, a thread a worker, texts of all real data sets. All ways in turn.
Counted is the time from when the last worker is ready (model loaded, plan read) to the end of the
last; vectors must be those of one worker, byte by byte.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.bench_encode import MODEL, texts_of
from tests.benchmarks.harness import ROOT, machine, make_shards, options
from tests.mpi import mpi_command
from toolkit.base.files import sha256_of
from toolkit.base.layout import UNIT_DIR

WAYS = {"alone": 1, "claim": 2, "mpi": 2}  # and how many workers


def encode(folder: Path, *, way: str, number: int) -> tuple[float, dict[str, str]]:
    """Seconds from when all are ready to the end, and the digest of each unit's vectors."""
    output = folder / f"{way}{number}"
    command = [sys.executable, "-m", "toolkit.encode", "embed_corpus", f"output_dir={output}"]
    command += [f"encoder.model={MODEL}", "encoder.dtype=fp32", f"corpus.input={folder / 'shards'}"]
    command += ["corpus.unit_rows=64", f"schedule={way}"]
    commands = [command] * WAYS[way]
    if way == "mpi":
        commands = [mpi_command(commands)]
    ready: list[float] = []

    def listen(process: "subprocess.Popen[str]") -> None:
        for line in process.stdout or ():
            if " done" in line and "embed: worker" in line:
                ready.append(time.perf_counter())

    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    started = [
        subprocess.Popen(line, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)
        for line in commands
    ]
    listeners = [threading.Thread(target=listen, args=[process]) for process in started]
    for thread in listeners:
        thread.start()
    for process, thread in zip(started, listeners, strict=True):
        assert process.wait() == 0
        thread.join()
    ended = time.perf_counter()
    assert len(ready) == WAYS[way], ready
    units = sorted((output / UNIT_DIR).glob("*.safetensors"))
    return ended - max(ready), {path.name: sha256_of(path) for path in units}


def main(argv: Sequence[str] | None = None) -> None:
    """Make the corpus, run, print a table."""
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=6000)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = texts_of(arguments.data, kind="natural", rows=arguments.rows)
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / "texts.jsonl").write_text(lines, encoding="utf-8")
        make_shards(folder / "texts.jsonl", output=folder / "shards")
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        digests = None
        for number in range(arguments.runs):
            for way in WAYS:
                found, units = encode(folder, way=way, number=number)
                digests = digests or units
                assert units == digests, f"{way}: another vector"
                seconds[way].append(found)
                print(f"{way:>6} {number}: {found:.2f} s", file=sys.stderr, flush=True)
    print(f"{len(texts):,} texts, median of {arguments.runs}; {machine()}\n")
    print("| way | workers | texts/s | of one worker |\n|---|---|---|---|")
    for way, workers in WAYS.items():
        times = list(zip(seconds["alone"], seconds[way], strict=True))
        ratio = statistics.median(alone / this for alone, this in times)
        rate = len(texts) / statistics.median(seconds[way])
        print(f"| {way} | {workers} | {rate:,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()

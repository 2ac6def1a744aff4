"""A dump to clean, tokenised shards, beside `datasets` and datatrove.

    make benchmark-data
    python -m tests.benchmarks.bench_cleaning --megabytes 200 --workers 2 --runs 5 --peers PYTHON

Every contender reads the same .xml.bz2 through the same reader and uses the same tokenizer; each
has its own way to share the work and to write. The others clean with mwparserfromhell's strip_code,
as their users do. Ours also finds the sentences, and packs the tokens into blocks.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import corpora
from tests.benchmarks.harness import ROOT, Contender, compare, machine, options, table

TINY = ROOT / "toolkit" / "quickstart" / "tiny-mistral"
PEERS = Path(__file__).with_name("peers")


def contenders(folder: Path, *, workers: int, peers: str | None) -> list[Contender]:
    """Ours, and those that can be run here."""

    def fresh(name: str) -> Callable[[], None]:
        return lambda: shutil.rmtree(folder / name, ignore_errors=True)

    ours = [sys.executable, "data_scripts/shard_wikipedia.py", "--rows-per-shard", "200"]
    ours += ["--workers", str(workers), "--input", str(folder / "dump.xml.bz2")]
    ours += ["--output", str(folder / "ours" / "shards"), "--model", str(TINY)]
    found = [Contender("ours", ours, fresh("ours"))]
    arguments = [str(TINY / "tokenizer.json"), str(workers)]
    dump = str(folder / "dump.xml.bz2")
    script = str(PEERS / "datasets_map.py")
    found.append(
        Contender(
            "datasets.map",
            [sys.executable, script, dump, f"{folder}/datasets", *arguments],
            fresh("datasets"),
        )
    )
    if peers:
        script = str(PEERS / "datatrove_pipeline.py")
        found.append(
            Contender(
                "datatrove",
                [peers, script, dump, f"{folder}/datatrove", *arguments],
                fresh("datatrove"),
            )
        )
    return found


def main(argv: list[str] | None = None) -> None:
    """Make the input, run, print a table in Markdown."""
    parser = options(__doc__, peers="datatrove")
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dump = arguments.data / corpora.DUMP
        corpora.write_dump(dump, megabytes=arguments.megabytes, out=folder / "dump.xml.bz2")
        found = compare(
            contenders(folder, workers=arguments.workers, peers=arguments.peers),
            runs=arguments.runs,
        )
    megabytes, workers, runs = arguments.megabytes, arguments.workers, arguments.runs
    print(f"{megabytes:g} MB of XML, {workers} workers, median of {runs}; {machine()}\n")
    print(
        table(
            found,
            figures={
                "MB/s": lambda run: megabytes / run.wall_s,
                "MB/s a worker": lambda run: megabytes / run.wall_s / workers,
            },
        )
    )


if __name__ == "__main__":
    main()

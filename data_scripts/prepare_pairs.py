"""Turn files of queries and their answers into a directory of training pairs.

Knows its command line, instructions by name, and how to report. All the work is in toolkit.text.
"""

import argparse
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from toolkit.base.console import say
from toolkit.base.errors import BadInput
from toolkit.base.files import sha256_of, stamp_of
from toolkit.command_line.door import Parser, guarded
from toolkit.text.delimited import TABLES
from toolkit.text.pair_formats import BLANK_LINE, read_pairs
from toolkit.text.pairs import Pair, PairTask, write_pairs

E5_INSTRUCTIONS = Path(__file__).with_name("e5_instructions.yaml")
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.bz2", ".parquet", *TABLES)
EXAMPLES = """examples:
  python data_scripts/prepare_pairs.py --input echo-data/ --instructions e5 --output pairs/e5
  python data_scripts/prepare_pairs.py --input contracts.jsonl qa.parquet --output pairs/legal \\
      --instructions legal.yaml

Each file is a data set, and each batch has pairs of one data set only. Columns: query, positive,
negative(s), under the names that E5, Echo, sentence-transformers, Tevatron and FlagEmbedding use;
or premise, hypothesis, label. A file of instructions is YAML:
  contracts: Given a clause, find clauses that say the same   (for the query)
  qa: {query: Answer the question, document: ""}
  duplicates: {both: Find questions that mean the same}       (a symmetric task)
"""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; argparse itself exits with code 2 if it is wrong."""
    parser = Parser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        help="files (.jsonl, .jsonl.gz, .jsonl.zst, .parquet, .csv, .tsv), folders of these, or "
        "folders with s1.PART, s2.PART, labels.PART",
    )
    parser.add_argument("--output", type=Path, required=True, help="the directory to make")
    parser.add_argument(
        "--instructions", help="a YAML file, or e5 for the instructions of the E5 data sets"
    )
    parser.add_argument(
        "--max-negatives",
        type=int,
        default=7,
        help="largest number of negatives per pair; default %(default)s",
    )
    parser.add_argument(
        "--max-bad-fraction",
        type=float,
        default=0.01,
        help="fail if a larger fraction of rows is bad; default %(default)s",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 0 done, 2 the input cannot be used (nothing is left behind)."""
    arguments = parse_arguments(argv)
    return guarded(lambda: prepare(arguments))


def prepare(arguments: argparse.Namespace) -> None:
    """Write the pairs, and print what was done."""
    if arguments.max_negatives < 0:
        raise BadInput(f"--max-negatives {arguments.max_negatives}: give a number from 0")
    instructions = read_instructions(arguments.instructions)
    files = find_files(arguments.input)
    stamps = {path: stamps_of(path) for path in files.values()}
    quarantine: list[str] = []
    # The rows of each data set that gave no pair; in the manifest too, so that all are counted.
    counts: dict[str, dict[str, Counter[str]]] = {}

    def pairs_of(name: str, path: Path) -> Iterator[Pair]:
        count_of = counts[name] = {"left_out": Counter(), "quarantined": Counter()}

        def on_bad(place: str, reason: str, note: str) -> None:
            count_of["quarantined"][reason] += 1
            entry = {"file": name, "place": place, "reason": reason, "note": note}
            quarantine.append(json.dumps(entry, ensure_ascii=False) + "\n")

        read, before = itertools.count(), len(quarantine)
        yield from read_pairs(
            path,
            max_negatives=arguments.max_negatives,
            on_bad=on_bad,
            left_out=count_of["left_out"],
            on_row=lambda: next(read),
        )
        count_of["left_out"] = +count_of["left_out"]  # without the reasons that no row had
        # If the file changed, the manifest would give the digest of another file than was read.
        if stamps_of(path) != stamps[path]:
            raise BadInput(f"{path}: has changed while it was read; start again when it is whole")
        # A fraction of the rows, not of the pairs: one row may give many pairs, or many rows one.
        bad, rows = len(quarantine) - before, next(read) + count_of["left_out"][BLANK_LINE]
        if bad > arguments.max_bad_fraction * rows:
            raise BadInput(
                f"{path}: {bad} of {rows} rows are bad, more than --max-bad-fraction "
                f"{arguments.max_bad_fraction}; the first: {quarantine[before].strip()}"
            )

    manifest = write_pairs(
        ((task_of(name, instructions), pairs_of(name, path)) for name, path in files.items()),
        output=arguments.output,
        sources=[
            {"name": file.name, "sha256": sha256_of(file)}
            for path in files.values()
            for file in files_in(path)
        ],
        quarantine=quarantine,
        counts=counts,
    )
    for entry in manifest["sets"]:
        asked = entry["query_instruction"] or "no instruction"
        both = " (both sides)" if entry["document_instruction"] else ""
        say(f"{entry['rows']:>12,} pairs  {entry['name']}: {asked}{both}")
        for reason, count in entry["left_out"].items():
            say(f"{count:>12,} rows left out: {reason}")
    if manifest["quarantined"]:
        where = arguments.output / "quarantine.jsonl"
        say(f"{manifest['quarantined']:>12,} bad rows, listed in {where}")
    say(f"{arguments.output}: {manifest['rows']:,} pairs of {len(files)} data sets")


def find_files(paths: Sequence[Path]) -> dict[str, Path]:
    """The file (or folder) of each data set, by the name of the data set."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir() and not list(path.glob("s1.*")):
            inside = [file for file in sorted(path.iterdir()) if file.name.endswith(SUFFIXES)]
            if not inside:
                raise BadInput(f"{path}: holds none of {', '.join(SUFFIXES)}")
            files += inside
        else:
            if not path.exists():
                raise BadInput(f"{path}: no such file")
            if path.is_file() and not path.name.endswith(SUFFIXES):
                raise BadInput(f"{path}: unknown kind of file; give {', '.join(SUFFIXES)}")
            files.append(path)
    names = [path.name.partition(".")[0] for path in files]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BadInput(f"two data sets are called {sorted(twice)[0]!r}: rename a file")
    return dict(zip(names, files, strict=True))


def files_in(path: Path) -> list[Path]:
    """The files of a data set, which is a file or a folder."""
    inside = [path] if path.is_file() else sorted(path.iterdir())
    return [file for file in inside if file.is_file()]


def stamps_of(path: Path) -> dict[Path, tuple[int, int]]:
    """The `stamp_of` each file of a data set."""
    return {file: stamp_of(file) for file in files_in(path)}


def read_instructions(given: str | None) -> Mapping[str, Any]:
    """Read the instructions, by the name of the data set that they are for."""
    if given is None:
        return {}
    path = E5_INSTRUCTIONS if given == "e5" else Path(given)
    try:
        instructions = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"--instructions {given}: cannot be read ({reason})") from error
    if not isinstance(instructions, dict):
        raise BadInput(f"--instructions {given}: wanted lines like name: instruction")
    for name, value in instructions.items():
        sides = value if isinstance(value, dict) else {"query": value}
        for side, text in sides.items():
            if side not in ("query", "document", "both") or not isinstance(text, str):
                raise BadInput(
                    f"--instructions {given}: {name}: {side}: {text!r}; wanted a text, or texts "
                    "for query, document, both"
                )
    return instructions


def task_of(name: str, instructions: Mapping[str, Any]) -> PairTask:
    """The task of a data set. allnli_split2 gets the instructions of allnli."""
    value = instructions.get(name, instructions.get(re.sub(r"_split\d+$", "", name), ""))
    sides: dict[str, str] = value if isinstance(value, dict) else {"query": value}
    both = sides.get("both", "")
    return PairTask(
        name,
        query_instruction=sides.get("query", both),
        document_instruction=sides.get("document", both),
    )


if __name__ == "__main__":
    sys.exit(main())

"""Verify a directory of shards or of training pairs, and repair what can be repaired.

Knows its command line. All the work is in toolkit.text.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit.base.console import say
from toolkit.command_line.door import FAILED, Parser, guarded
from toolkit.text.repair import reads_whole_files, repair
from toolkit.text.sources import Input, find_inputs
from toolkit.text.verify import Fault, verify

EXAMPLES = """examples:
  python data_scripts/verify_shards.py shards/enwiki
  python data_scripts/verify_shards.py shards/enwiki --repair --source enwiki.xml.bz2

Exit codes: 0 everything is as it was written, 1 something is not, 2 it cannot be verified.
"""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; argparse itself exits with code 2 if it is wrong."""
    parser = Parser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "directory", type=Path, help="made by shard_wikipedia.py or prepare_pairs.py"
    )
    parser.add_argument(
        "--repair", action="store_true", help="make damaged files again, if that is possible"
    )
    parser.add_argument(
        "--source",
        type=Path,
        nargs="+",
        default=[],
        help="the --input that the shards were made from",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code: 0 no fault, 1 faults, 2 bad input."""
    arguments = parse_arguments(argv)
    faults: list[Fault] = []

    def run() -> None:
        if arguments.repair:
            inputs: tuple[Input, ...] = ()
            if arguments.source:
                whole_files = reads_whole_files(arguments.directory)
                inputs = find_inputs(arguments.source, whole_files=whole_files)
            faults.extend(repair(arguments.directory, inputs=inputs))
        else:
            faults.extend(verify(arguments.directory))
        for fault in faults:
            say(f"{arguments.directory / fault.file}: {fault.problem}")
        say(f"{arguments.directory}: {len(faults) or 'no'} fault{'' if len(faults) == 1 else 's'}")

    return guarded(run) or (FAILED if faults else 0)


if __name__ == "__main__":
    sys.exit(main())

"""Say which documents of new shards are new, changed or gone since older ones.

Knows its command line. The comparison is in toolkit.text.changes.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from toolkit.base.console import Progress, say
from toolkit.base.errors import BadInput
from toolkit.base.files import create_atomic
from toolkit.command_line.door import Parser, guarded

EXAMPLES = """example: before a new encoding takes over what an older one has
  python data_scripts/compare_shards.py shards/wikipedia-2026-11 shards/wikipedia-2026-12 \\
      --output changes.jsonl
  python -m toolkit.encode embed_corpus corpus.input=shards/wikipedia-2026-12 output_dir=ENC2 \\
      reuse=ENC

A document is changed when its id is there and its text is another one. A title alone is no change.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 0 done, 2 the input cannot be used."""
    parser = Parser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path, help="a directory of shards")
    parser.add_argument("new", type=Path, help="a directory of shards")
    parser.add_argument(
        "--output", type=Path, help="write a JSON line (id, change) for all that are not the same"
    )
    arguments = parser.parse_args(argv)
    return guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Compare, write the changes if asked to, and print how many there are."""
    from toolkit.text.changes import changes
    from toolkit.text.shards import open_shards

    old, new = (open_shards(folder) for folder in (arguments.old, arguments.new))
    counts = Counter[str]({"same": 0, "new": 0, "changed": 0, "gone": 0})
    progress = Progress("compare", total=len(new), unit="documents")

    def lines() -> Iterator[str]:
        for name, change in changes(old, new):
            counts[change] += 1
            progress.advance(change != "gone")
            if change != "same":
                yield json.dumps({"id": name, "change": change}, ensure_ascii=False) + "\n"

    if arguments.output is None:
        for _ in lines():
            pass
    elif not create_atomic(arguments.output, "".join(lines())):
        raise BadInput(f"{arguments.output}: is there already; give another --output")
    progress.close()
    told = ", ".join(f"{number:,} {change}" for change, number in counts.items())
    say(f"{arguments.new} beside {arguments.old}: {told}")


if __name__ == "__main__":
    sys.exit(main())

"""Find hard negatives for training pairs: texts that an encoder finds near a query, but no answers.

Knows its command line and how to report. All the work is in toolkit.domain.mining.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit.base.errors import BadInput
from toolkit.base.files import is_committed
from toolkit.command_line.door import Parser, guarded
from toolkit.domain import mining
from toolkit.settings.domain_schema import MineRecipe

EXAMPLES = """example:
  python data_scripts/prepare_pairs.py --input legal.jsonl --output pairs/legal
  python -m toolkit.encode embed_corpus encoder.model=runs/simcse corpus.input=shards/legal \\
      output_dir=embeddings/legal
  python data_scripts/mine_negatives.py --pairs pairs/legal --embeddings embeddings/legal \\
      --output pairs/legal_hard
  python -m toolkit.train supervised_mistral_7b data.train=pairs/legal_hard

The pairs get new negatives, which replace their own. Queries and positives are embedded with the
instructions of their data set. Rows whose cosine with the query exceeds --max-ratio times that of
the positive may be answers that nobody has marked, and are left out.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 0 done, 2 the input cannot be used (nothing is left behind)."""
    parser = Parser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", type=Path, required=True, help="a directory of prepare_pairs.py")
    parser.add_argument(
        "--embeddings", type=Path, required=True, help="an output_dir of toolkit.encode"
    )
    parser.add_argument("--output", type=Path, required=True, help="the directory to make")
    parser.add_argument(
        "--negatives", type=int, default=7, help="negatives per pair; default %(default)s"
    )
    parser.add_argument(
        "--depth",
        type=int,
        default=100,
        help="nearest rows to consider per query; default %(default)s",
    )
    parser.add_argument(
        "--skip",
        type=int,
        default=0,
        help="nearest rows to leave out per query; default %(default)s",
    )
    parser.add_argument(
        "--max-ratio", type=float, default=0.95, help="see below; default %(default)s"
    )
    parser.add_argument(
        "--batch", type=int, default=4096, help="queries per batch; default %(default)s"
    )
    parser.add_argument("--model", help="the folder of the encoder, if it was moved")
    parser.add_argument("--corpus", type=Path, help="the shards of the corpus, if they were moved")
    arguments = parser.parse_args(argv)
    return guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Write the pairs with their new negatives, and print what was left out."""
    check_arguments(arguments)
    recipe = MineRecipe(
        kind="mine",
        output_dir=str(arguments.output),
        pairs=str(arguments.pairs),
        embeddings=str(arguments.embeddings),
        negatives=arguments.negatives,
        depth=arguments.depth,
        skip=arguments.skip,
        max_ratio=arguments.max_ratio,
        batch_queries=arguments.batch,
    )
    mining.run(recipe, by_hand=mining.ByHand(arguments.model, arguments.corpus))


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise `BadInput` for numbers out of range, and for an output that exists."""
    for name, least in (("negatives", 1), ("depth", 1), ("skip", 0), ("batch", 1)):
        if getattr(arguments, name) < least:
            raise BadInput(f"--{name} {getattr(arguments, name)}: give a number from {least}")
    if arguments.skip >= arguments.depth:
        raise BadInput(f"--skip {arguments.skip}: leaves nothing of --depth {arguments.depth}")
    if arguments.max_ratio <= 0:
        raise BadInput(f"--max-ratio {arguments.max_ratio}: give a number above 0, such as 0.95")
    if is_committed(arguments.output):
        raise BadInput(f"{arguments.output}: is there already; give another --output")


if __name__ == "__main__":
    sys.exit(main())

"""Tokenise and pack a directory of shards for a model, before a training job needs it.

Knows its command line and its share of the work. A training job does the same by itself if the
tokens do not exist, but its GPUs wait meanwhile. So for several gigabytes of text or more, this is
worth a job of its own.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit.base.console import say
from toolkit.base.errors import BadInput
from toolkit.cluster.topology import array_task, detect
from toolkit.command_line.door import Parser, guarded
from toolkit.settings.model_source import resolve_model
from toolkit.text.held_out import HeldOut
from toolkit.text.shards import open_shards

EXAMPLES = """examples:
  python data_scripts/tokenize_shards.py --shards shards/enwiki \\
      --model mistralai/Mistral-7B-Instruct-v0.2 --max-tokens 512
  sbatch --array=0-7 --wrap "python data_scripts/tokenize_shards.py --shards ... --model ..."

The tasks of a SLURM array, of srun or of mpiexec share the shards; one process uses all processors
that it may. If it is killed and started again, it continues: files that exist are kept.
"""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; argparse itself exits with code 2 if it is wrong."""
    parser = Parser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--shards", type=Path, required=True, help="a directory of shard_wikipedia.py"
    )
    parser.add_argument("--model", required=True, help="the recipe's model.base: a name or folder")
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=512,
        help="the recipe's data.max_tokens; default %(default)s",
    )
    parser.add_argument(
        "--held-out-documents",
        type=int,
        default=0,
        help="the recipe's data.held_out_documents; default %(default)s",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=42,
        help="the recipe's train.seed, which draws these documents; default %(default)s",
    )
    return parser.parse_args(argv)


def tokenize(arguments: argparse.Namespace) -> None:
    """Do this task's share of the shards; the task that finds all shards done writes the
    manifest."""
    if arguments.max_tokens < 8:
        raise BadInput(f"--max-tokens {arguments.max_tokens}: give a number from 8")
    if arguments.held_out_documents < 0 or arguments.seed < 0:
        raise BadInput("--held-out-documents and --seed: give numbers from 0")
    held_out = HeldOut(documents=arguments.held_out_documents, seed=arguments.seed)
    place = detect(os.environ)
    task, num_tasks = array_task(os.environ)
    part = task * place.world_size + place.rank
    parts = num_tasks * place.world_size
    # One task compares all digests; if every task did, the shards would be read many times.
    open_shards(arguments.shards, verify=part == 0)
    # Imported here, because it takes seconds and invalid arguments are refused before it.
    from toolkit.batching.tokenizer import text_tokenizer, tokenize_shards

    tokenizer = text_tokenizer(resolve_model(arguments.model), max_tokens=arguments.max_tokens)
    summary = tokenize_shards(
        arguments.shards, tokenizer=tokenizer, part=part, parts=parts, held_out=held_out
    )
    say(summary)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code: 0 done, 2 the input cannot be used."""
    arguments = parse_arguments(argv)
    return guarded(lambda: tokenize(arguments))


if __name__ == "__main__":
    sys.exit(main())

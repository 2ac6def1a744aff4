"""Find hard negatives for training pairs: texts that an encoder finds near a query, but no answers.

Knows its command line and how to report. All the work is in toolkit.encoding and toolkit.text.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from toolkit.base.console import Progress, at_work, say, warn
from toolkit.base.errors import BadInput
from toolkit.base.files import is_committed
from toolkit.command_line.door import Parser, guarded

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
    from toolkit.encoding.snippets import corpus_of
    from toolkit.encoding.store import VectorStore
    from toolkit.text.pairs import Pair, PairTask, open_pairs, write_pairs

    pairs = open_pairs(arguments.pairs)
    store = VectorStore(arguments.embeddings)
    if store.has_chunks:
        raise BadInput(
            f"{arguments.embeddings}: holds vectors of chunks; encode without corpus.chunk_tokens"
        )
    with at_work("mine: compares the corpus with its digests"):
        corpus = corpus_of(store, corpus=arguments.corpus, verify=True)
    # Imported here, so that neither the help text nor a refusal waits for torch.
    from toolkit.encoding.encoder import encoder_of
    from toolkit.encoding.negatives import Miner, MiningRules

    miner = Miner(
        store,
        encoder=encoder_of(store, model=arguments.model),
        text_of=corpus.text,
        rules=MiningRules(
            arguments.negatives, arguments.depth, skip=arguments.skip, max_ratio=arguments.max_ratio
        ),
    )
    progress = Progress("mine", total=int(pairs.num_rows.sum()), unit="pairs")
    num_found = 0

    def mined(number: int, task: PairTask) -> Iterator[Pair]:
        nonlocal num_found
        whole = [pairs.pair(number, row) for row in range(int(pairs.num_rows[number]))]
        for pair, negatives in miner.mine(whole, task=task, batch=arguments.batch):
            num_found += len(negatives)
            progress.advance(1)
            yield Pair(pair.query, pair.positive, negatives)

    manifest = write_pairs(
        ((task, mined(number, task)) for number, task in enumerate(pairs.tasks)),
        output=arguments.output,
        sources=[
            {"name": arguments.pairs.name, "sha256": pairs.digest},
            {"name": arguments.embeddings.name, "sha256": store.manifest["digest"]},
        ],
        quarantine=[],
    )
    progress.close()
    for reason, count in miner.left_out.most_common():
        say(f"{count:>12,} left out: {reason}")
    mean = num_found / manifest["rows"]
    say(f"{arguments.output}: {manifest['rows']:,} pairs, {mean:.2f} negatives each")
    asked = arguments.negatives * manifest["rows"]
    if num_found < asked and (hint := hint_of(miner.left_out, num_found=num_found)):
        warn(hint)


def hint_of(left_out: Mapping[str, int], *, num_found: int) -> str:
    """The advice if pairs have too few negatives because most candidates are too near to the query;
    empty if that is not the reason."""
    from toolkit.encoding.negatives import TOO_NEAR

    num_near, num_all = left_out.get(TOO_NEAR, 0), num_found + sum(left_out.values())
    if 2 * num_near <= num_all:
        return ""
    return (
        f"{num_near:,} of {num_all:,} candidates are too near to the query: give a larger "
        "--max-ratio (1 leaves out only what is nearer than the positive), or a larger --depth"
    )


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

"""Turn a Wikipedia dump, or any file of documents, into a directory of shards.

Knows its command line and how to report. All the work is in toolkit.text.
"""

import argparse
import itertools
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from toolkit.files import BadInput, sha256_of
from toolkit.text.readers import Columns, is_dump, read_documents, reading_settings
from toolkit.text.shards import Article, Origin, ShardRules, write_shards, written_shards

EXAMPLES = """examples:
  python data_scripts/shard_wikipedia.py \\
      --input enwiki-latest-pages-articles.xml.bz2 --output shards/enwiki
  python data_scripts/shard_wikipedia.py \\
      --input papers.jsonl.gz --text-column abstract --output shards/papers

The output is written to its end or not at all. A second run with the same input and settings
has nothing to do. Exit codes: 0 done, 2 the input cannot be used (nothing is left behind).
"""
# In every dump: counted at the end, not reported one by one.
NOUNS = {"redirect": "redirect", "not an article": "non-article page", "empty": "empty document"}
NUM_REPORTED = 10
REPORT_EVERY_S = 30.0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse itself exits with code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        help="a MediaWiki dump (.xml, .xml.bz2, .xml.gz), or documents: .jsonl, .jsonl.gz, "
        ".parquet, .txt, .txt.gz (one per line)",
    )
    parser.add_argument("--output", type=Path, required=True, help="the directory to make")
    parser.add_argument(
        "--rows-per-shard", type=int, default=ShardRules.rows_per_shard, help="default %(default)s"
    )
    parser.add_argument("--language", default="en", help="for sentence ends; default %(default)s")
    parser.add_argument("--limit", type=int, help="stop after this many documents")
    names = parser.add_argument_group("columns of .jsonl and .parquet files")
    for name in ("text", "id", "title", "url"):
        names.add_argument(f"--{name}-column", default=name, help="default %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    arguments = parse_arguments(argv)
    # SLURM ends a job with SIGTERM: leave through `finally`, which removes the temporary directory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        shard(arguments)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def shard(arguments: argparse.Namespace) -> None:
    """Write the shards and say what was done."""
    path, output = arguments.input, arguments.output
    if arguments.limit is not None and arguments.limit < 1:
        raise BadInput(f"--limit {arguments.limit}: give a number from 1")
    columns = Columns(
        text=arguments.text_column,
        id=arguments.id_column,
        title=arguments.title_column,
        url=arguments.url_column,
    )
    reading = {**reading_settings(path, columns=columns), "limit": arguments.limit}
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give a dump or a file of documents")
    rules = ShardRules(language=arguments.language, rows_per_shard=arguments.rows_per_shard)
    origin = Origin(name=path.name, sha256=sha256_of(path), reading=reading)
    if written_shards(output, origin=origin, rules=rules):
        print(f"{output}: these shards are already there; nothing to do")
        return
    skipped: Counter[str] = Counter()

    def skip(reason: str, place: str) -> None:
        skipped[reason] += 1
        if reason not in NOUNS and skipped[reason] <= NUM_REPORTED:
            print(f"skipped {place}: {reason}", file=sys.stderr)

    documents = read_documents(path, columns=columns, on_skip=skip)
    limited = itertools.islice(documents, arguments.limit)
    manifest = write_shards(
        with_progress(limited), directory=output, origin=origin, rules=rules, skipped=skipped
    )
    noun = "article" if is_dump(path) else "document"
    dropped = [
        f"{counted(count, noun=NOUNS[why])} dropped" if why in NOUNS else f"{count} skipped ({why})"
        for why, count in skipped.items()
    ]
    print(", ".join([f"{counted(manifest['rows'], noun=noun)} kept", *dropped]))
    num_sentences = sum(entry["num_sentences"] for entry in manifest["shards"])
    num_shards = counted(len(manifest["shards"]), noun="shard")
    print(f"{output}: {num_shards}, {counted(num_sentences, noun='sentence')}")


def counted(number: int, *, noun: str) -> str:
    """A number with its noun, as in "1 shard" and "2 shards"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def with_progress(articles: Iterable[Article]) -> Iterator[Article]:
    """The same articles: a bar on a terminal, a line now and then in a log."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(articles, unit=" documents")
        return
    told = time.monotonic()
    for number, article in enumerate(articles, start=1):
        if time.monotonic() - told > REPORT_EVERY_S:
            told = time.monotonic()
            print(f"{number} documents read", file=sys.stderr, flush=True)
        yield article


if __name__ == "__main__":
    sys.exit(main())

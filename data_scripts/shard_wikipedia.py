"""Turn Wikipedia dumps, or any files of documents, into a directory of shards.

Knows its command line, which workers there are, and how to report. All the work is in toolkit.text.
"""

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from toolkit.base.console import Progress, at_work, say, say_beside
from toolkit.base.errors import BadInput
from toolkit.base.files import digest_of
from toolkit.base.layout import COPIES_SUFFIX, LEASE_DIR
from toolkit.cluster.crew import local_crew, mpi_crew
from toolkit.cluster.leases import Leases
from toolkit.cluster.topology import array_task, detect
from toolkit.command_line.door import Parser, guarded
from toolkit.settings.model_source import resolve_model
from toolkit.text.assembly import QUARANTINE, Unfinished, finish, written
from toolkit.text.filters import Filters
from toolkit.text.folders import overlap
from toolkit.text.readers import Columns
from toolkit.text.remote import RemoteFile, is_address, local_path, remote_files
from toolkit.text.sharding import DEDUPLICATE, Part, Work, make_parts
from toolkit.text.shards import ShardRules
from toolkit.text.sources import Input, noun_of, survey

EXAMPLES = """examples:
  python data_scripts/shard_wikipedia.py --workers 8 \\
      --input enwiki-latest-pages-articles.xml.bz2 --output shards/enwiki
  python data_scripts/shard_wikipedia.py --input papers/*.jsonl.zst --text-column abstract \\
      --deduplicate near --output shards/papers
  mpirun -n 16 python data_scripts/shard_wikipedia.py --input ... --output ...
  sbatch --array=0-15 slurm/shard_wikipedia.sh --input ... --output ...

The output is the same to the byte for any number of workers. It is written completely or not at
all; a killed run continues where it stopped when it is started again. Exit codes: 0 done, 2 the
input cannot be used.
"""
LEASE_S, POLL_S = 60.0, 0.5  # of copies of inputs
NOUNS = {
    "dump": ("article", "page"),
    "dataset": ("document", "row"),
    "parquet": ("document", "row"),
}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; argparse itself exits with code 2 if it is wrong."""
    parser = Parser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_input(parser)
    parser.add_argument("--output", type=Path, required=True, help="the directory to make")
    parser.add_argument(
        "--workers", type=int, default=1, help="number of processes; default %(default)s"
    )
    parser.add_argument(
        "--mpi", action="store_true", help="workers are MPI ranks (automatic under mpirun)"
    )
    parser.add_argument(
        "--rows-per-shard",
        type=int,
        default=ShardRules.rows_per_shard,
        help="pages, lines or rows of input per shard; small files share one; default %(default)s",
    )
    parser.add_argument("--model", help="also tokenise for this model (see tokenize_shards.py)")
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=512,
        help="tokens per block, with --model; default %(default)s",
    )
    parser.add_argument(
        "--language", default="en", help="the language of sentence ends; default %(default)s"
    )
    parser.add_argument("--limit", type=int, help="read only this many rows of each input")
    parser.add_argument(
        "--max-bad-fraction",
        type=float,
        default=0.01,
        help="fail if a larger fraction of rows, or of files, is bad; default %(default)s",
    )
    _add_filters(parser.add_argument_group("what is left out"))
    names = parser.add_argument_group("columns of .jsonl and .parquet files and data sets")
    for name in ("text", "id", "title", "url"):
        names.add_argument(f"--{name}-column", default=name, help="default %(default)s")
    return parser.parse_args(argv)


def _add_input(group: Any) -> None:
    group.add_argument(
        "--input",
        nargs="+",
        default=[],
        help="MediaWiki dumps (.xml), JSON lines (.jsonl), text with one document per line (.txt), "
        "each also with .gz, .bz2 or .zst; .parquet; folders of these; a folder of save_to_disk; "
        "addresses (s3://, gs://, https://, ...) of files, patterns or folders, which are copied "
        "to OUTPUT.inputs first",
    )
    group.add_argument(
        "--whole-files",
        action="store_true",
        help="each .txt, .md or .rst file is one document, in whatever encoding",
    )
    group.add_argument("--dataset", help="instead: a data set of the Hugging Face hub")
    group.add_argument("--config", help="the configuration of that data set")
    group.add_argument(
        "--split", default="train", help="the split of that data set; default %(default)s"
    )


def _add_filters(group: Any) -> None:
    group.add_argument(
        "--min-chars", type=int, default=0, help="leave out shorter texts; default 0"
    )
    group.add_argument("--max-chars", type=int, help="leave out longer texts")
    group.add_argument(
        "--keep-languages", nargs="+", default=[], help="leave out all but en, de, ..."
    )
    group.add_argument(
        "--quality", action="store_true", help="leave out texts that break Gopher's quality rules"
    )
    group.add_argument(
        "--deduplicate",
        choices=DEDUPLICATE,
        default="none",
        help="leave out texts that repeat an earlier one: to the character (exact); but for case, "
        "white space and composition (normalized); or nearly, by their words (near); "
        "default %(default)s",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    arguments = parse_arguments(argv)
    # SLURM ends a job with SIGTERM. Exit through `finally` blocks, which end the workers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return guarded(lambda: shard(arguments))
    except KeyboardInterrupt:
        say_beside("interrupted; the same command continues from here")
        return 128 + signal.SIGINT


def shard(arguments: argparse.Namespace) -> None:
    """Make this process's share of the shards, and commit all shards once they exist."""
    work = work_of(arguments)
    if written(work):
        say(f"{work.output}: these shards are already there; nothing to do")
        tokenize(work, tokenizer=load_tokenizer(arguments))
        return
    place = detect(os.environ)
    task, num_tasks = array_task(os.environ)
    by_mpi = arguments.mpi or place.launcher == "mpi"
    # Under MPI rank 0 deals parts to all ranks; otherwise each process takes a fixed share.
    if by_mpi:
        share = (task, num_tasks)
    else:
        share = (task * place.world_size + place.rank, num_tasks * place.world_size)
    with ThreadPoolExecutor(1) as beside, crew(arguments, by_mpi=by_mpi) as workers:
        if workers is None:
            return
        loading = beside.submit(load_tokenizer, arguments)  # takes seconds, so it runs meanwhile
        executor, num_workers = workers
        progress = Progress("shard", total=None, unit="rows")
        num_bytes = 0

        def on_part(part: Part) -> None:
            nonlocal num_bytes
            num_bytes += part.bytes_in
            progress.advance(part.rows, note=f"{num_bytes / 1e6:,.0f} MB")

        make_parts(work, executor=executor, width=num_workers, share=share, on_part=on_part)
        progress.close()
    try:
        manifest = finish(work, max_bad_fraction=arguments.max_bad_fraction)
    except Unfinished:
        say(f"{work.output}: share {share[0] + 1} of {share[1]} is done, others are not yet")
        return
    report(work, manifest=manifest)
    tokenize(work, tokenizer=loading.result())


def tokenize(work: Work, *, tokenizer: Any) -> None:
    """Also tokenise the shards, if there is a tokenizer."""
    if tokenizer is not None:
        from toolkit.batching.tokenizer import tokenize_shards

        say(tokenize_shards(work.output, tokenizer=tokenizer, part=0, parts=1))


def load_tokenizer(arguments: argparse.Namespace) -> Any:
    """The tokenizer of --model; None if no model is given."""
    if not arguments.model:
        return None
    from toolkit.batching.tokenizer import text_tokenizer

    return text_tokenizer(resolve_model(arguments.model), max_tokens=arguments.max_tokens)


@contextlib.contextmanager
def crew(arguments: argparse.Namespace, *, by_mpi: bool) -> Iterator[tuple[Executor, int] | None]:
    """The executor that makes parts, and the number of its workers; None in a process that has only
    worked for another one."""
    if by_mpi:
        with mpi_crew() as ranks:
            yield ranks
    else:
        with local_crew(arguments.workers) as executor:
            yield executor, arguments.workers


def work_of(arguments: argparse.Namespace) -> Work:
    """The work that the arguments describe. Raises `BadInput` for invalid arguments."""
    limits = {"limit": 1, "workers": 1, "min_chars": 0, "max_chars": 1, "max_tokens": 8}
    for name, least in limits.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            option = "--" + name.replace("_", "-")
            raise BadInput(f"{option} {value}: give a number from {least}")
    if not 0 <= arguments.max_bad_fraction <= 1:
        raise BadInput(f"--max-bad-fraction {arguments.max_bad_fraction}: from 0 to 1")
    if arguments.model:
        resolve_model(arguments.model)  # a mistyped model is refused now, not after hours of work
    if bool(arguments.input) == bool(arguments.dataset):
        raise BadInput("give either --input or --dataset")
    if arguments.dataset:
        inputs: tuple[Input, ...] = (
            Input(
                name=arguments.dataset,
                path=arguments.dataset,
                kind="dataset",
                config=arguments.config,
                split=arguments.split,
            ),
        )
    else:
        inputs = _inputs(arguments)
    for given in inputs:
        if given.is_file and not Path(given.path).is_file():
            raise BadInput(f"{given.path}: no such file; give a dump or a file of documents")
    return Work(
        output=arguments.output.absolute(),
        inputs=inputs,
        columns=Columns(
            text=arguments.text_column,
            id=arguments.id_column,
            title=arguments.title_column,
            url=arguments.url_column,
        ),
        rules=ShardRules(language=arguments.language, rows_per_shard=arguments.rows_per_shard),
        filters=Filters(
            min_chars=arguments.min_chars,
            max_chars=arguments.max_chars,
            languages=tuple(arguments.keep_languages),
            quality=arguments.quality,
        ),
        deduplicate=arguments.deduplicate,
        limit=arguments.limit,
    )


def _inputs(arguments: argparse.Namespace) -> tuple[Input, ...]:
    """The inputs of the paths and addresses that were given; what is passed over is told."""
    paths, roots = _paths(arguments)
    for path in paths:
        if problem := overlap(arguments.output, source=path):
            raise BadInput(problem)
    found = survey(paths, whole_files=arguments.whole_files, roots=roots)
    if found.passed:
        say(found.told)
    return tuple(
        given if given.is_file else dataclasses.replace(given, split=arguments.split)
        for given in found.inputs
    )


def _paths(arguments: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """The paths of all inputs, after copying those that were given by address, and the folders of
    these copies. Processes that come together each copy other files, and all end when all files are
    here."""
    paths: list[Path | RemoteFile] = []
    for one in arguments.input:
        local = local_path(one) if is_address(one) else Path(one)
        if local is None:
            paths += remote_files(one, whole_files=arguments.whole_files)
        else:
            paths.append(local)
    files = [one for one in paths if isinstance(one, RemoteFile)]
    output = arguments.output.absolute()
    folder = output.with_name(output.name + COPIES_SUFFIX)
    missing = [one for one in files if not one.is_copied(folder)]
    if missing:
        with Leases(folder / LEASE_DIR, lease_s=LEASE_S) as leases:
            while missing := [one for one in missing if not one.is_copied(folder)]:
                if not any(_copied(one, folder=folder, leases=leases) for one in missing):
                    time.sleep(POLL_S)  # others copy what is left
    roots = [root for one in files if (root := one.root(folder)) is not None]
    return [one if isinstance(one, Path) else one.place(folder) for one in paths], roots


def _copied(file: RemoteFile, *, folder: Path, leases: Leases) -> bool:
    """Copy a file unless another process does; returns whether we did."""
    name = digest_of({"place": str(file.place(folder))})[:32]
    if not leases.take(name, generation=leases.taken().get(name)):
        return False
    try:
        if not file.is_copied(folder):
            with at_work(f"shard: copies {file.path}"):
                file.copy(folder)
    finally:
        leases.give_back(name)
    return True


def report(work: Work, *, manifest: dict[str, Any]) -> None:
    """Print what became of the rows: kept, left out, or bad, with reasons."""
    summary = manifest["summary"]
    kind = work.inputs[0].kind
    kept, read = "article" if kind == "dump" else "document", noun_of(kind)
    say(f"{summary['rows']:>12,} {read}s read, {summary['bytes_read'] / 1e6:,.1f} MB")
    for reason, count in summary["dropped"].items():
        say(f"{count:>12,} left out: {reason}")
    for reason, count in summary["quarantined"].items():
        say(f"{count:>12,} bad: {reason}")
    say(
        f"{summary['documents']:>12,} {kept}s kept, {summary['characters'] / 1e6:,.1f} M characters"
    )
    if summary["without_id"]:
        say(f"{summary['without_id']:>12,} of them without an id: named by file and {read}")
    for name, why in summary["damaged_files"].items():
        say(f"damaged: {name}: {why}")
    if (work.output / QUARANTINE).is_file():
        say(f"what was bad is listed in {work.output / QUARANTINE}")
    say(f"{work.output}: {summary['shards']:,} shards, {summary['sentences']:,} sentences")


if __name__ == "__main__":
    sys.exit(main())

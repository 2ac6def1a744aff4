# PYTHON_ARGCOMPLETE_OK
"""Search in an encoded corpus:  python -m toolkit.search ENC "query" [--top 5] [--json]"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.base.console import LINE_S, Progress, at_work, say, say_beside, say_json
from toolkit.base.errors import BadInput
from toolkit.command_line.completion import answer_shell
from toolkit.command_line.door import Parser, guarded
from toolkit.encoding.index import KINDS

if TYPE_CHECKING:
    from toolkit.encoding.formats import Vectors
    from toolkit.encoding.search import Find, Hit
    from toolkit.encoding.store import VectorStore

EXAMPLES = """examples:
  python -m toolkit.search embeddings/wikipedia "who built the canal?"
  python -m toolkit.search embeddings/wikipedia --queries questions.txt --json > answers.jsonl
  python -m toolkit.search embeddings/wikipedia --build-index hnsw
  python -m toolkit.search embeddings/wikipedia --index hnsw "who built the canal?"
  python -m toolkit.search embeddings/wikipedia --hybrid "who built the canal?"

Without --index every row is compared. An index needs faiss (pip install faiss-cpu). Its build can
be stopped and started again at any time. --hybrid and --bm25 need no more than the texts: the first
search makes an index of their words.
"""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to search. `prompt`: put before queries instead of what stood before the corpus's texts.
    `index`: the kind of index to use instead of the exact search. `hybrid`: fused with the ranking
    by words; `bm25`: by words alone. `corpus`, `model`: where they are now, if they were moved.
    `every_chunk`: show all matching chunks of a document, not only the best. `verify`: first
    compare every file with its digest."""

    top: int = 5
    instruction: str = ""
    prompt: str | None = None
    index: str | None = None
    hybrid: bool = False
    bm25: bool = False
    model: str | None = None
    corpus: Path | None = None
    as_json: bool = False
    every_chunk: bool = False
    verify: bool = False


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.search`."""
    parser = _parser()
    answer_shell(parser)
    arguments = parser.parse_intermixed_args(argv)  # queries may stand behind options
    settings = Settings(
        top=arguments.top,
        instruction=arguments.instruction,
        prompt=arguments.prompt,
        index=arguments.index,
        hybrid=arguments.hybrid,
        bm25=arguments.bm25,
        model=arguments.model,
        corpus=arguments.corpus,
        as_json=arguments.json,
        every_chunk=arguments.every_chunk,
        verify=arguments.verify,
    )

    def action() -> None:
        queries = [*arguments.query, *read_queries(arguments.queries)]
        check_words(arguments)
        if bool(queries) == bool(arguments.build_index):
            raise BadInput("give queries (in quotes, or --queries FILE), or else --build-index")
        if blank := [query for query in queries if not query.strip()]:
            raise BadInput(f"the query {blank[0]!r} is blank")
        from toolkit.text.tokens import is_unicode

        if strange := [query for query in queries if not is_unicode(query)]:
            raise BadInput(f"the query {strange[0]!r} is not valid Unicode; write it in UTF-8")
        if queries:
            run(arguments.encoding, queries=queries, settings=settings)
        else:
            build(arguments.encoding, kind=arguments.build_index)

    return guarded(action)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m toolkit.search",
        description="Find the rows of an encoded corpus that are nearest to a query (cosine).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("encoding", type=Path, help="the output_dir of toolkit.encode")
    add("query", nargs="*", default=[], help="queries, each in quotes")
    add("--queries", type=Path, metavar="FILE", help="more queries, one per line")
    add("--top", type=int, default=5, help="hits per query (default 5)")
    add("--instruction", default="", help="put before each query, for encoders trained with one")
    add("--prompt", help="put before each query: the name of a prompt of the model, or a text")
    add("--build-index", choices=KINDS, help="make this index, or finish one that was begun")
    add("--index", choices=KINDS, help="search by this index: faster, but may miss rows")
    add("--hybrid", action="store_true", help="fuse with the ranking by words (BM25)")
    add("--bm25", action="store_true", help="search by words alone (BM25); needs no model")
    add("--model", help="the encoder's folder, if it was moved")
    add("--corpus", type=Path, help="the corpus's shards, if they were moved")
    add("--json", action="store_true", help="print one line of JSON per query")
    add(
        "--every-chunk",
        action="store_true",
        help="show all chunks of a long text, not only the best",
    )
    add("--verify", action="store_true", help="first compare all files with their digests")
    return parser


def check_words(arguments: argparse.Namespace) -> None:
    """Raise `BadInput` for options that do not go with a search by words."""
    if arguments.bm25:
        beside = ("hybrid", "index", "instruction", "prompt", "model")
        if given := [f"--{name}" for name in beside if getattr(arguments, name)]:
            raise BadInput(f"--bm25 and {given[0]}: --bm25 searches by words alone; leave one out")
    if arguments.build_index and (arguments.hybrid or arguments.bm25):
        asked = "--hybrid" if arguments.hybrid else "--bm25"
        raise BadInput(
            f"--build-index and {asked}: --build-index is for vectors, and the first search with "
            f"{asked} makes the index of words; give one of them"
        )


def read_queries(path: Path | None) -> list[str]:
    """The lines of a file that are not blank. `BadInput` when it cannot be read, or has none."""
    if path is None:
        return []
    try:
        # With or without a byte order mark; a query may hold U+2028.
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--queries {path}: cannot be read as UTF-8 text ({error})") from error
    queries = [line for line in lines if line]
    if not queries:
        raise BadInput(f"--queries {path}: has no line; write one query per line")
    return queries


def build(encoding: Path, *, kind: str) -> None:
    """Build the index of that kind, or finish one that was begun."""
    from toolkit.encoding.index import build_index
    from toolkit.encoding.store import VectorStore

    store = VectorStore(encoding)
    progress = Progress(f"index {kind}", total=store.num_rows, unit="rows")
    record = build_index(store, kind=kind, on_rows=progress.advance)
    progress.close()
    parameters = ", ".join(f"{name} {value}" for name, value in record.parameters.items())
    size = f"{record.rows:,} rows, {record.bytes / 1e6:,.1f} MB"
    say(f"search: index {kind} ({parameters or 'no parameters'}): {size}")


def run(encoding: Path, *, queries: list[str], settings: Settings) -> None:
    """Print the hits of each query. The queries are embedded as the corpus was, with the
    instruction before them, if there is one.

    Raises `BadInput` when the encoding is not finished, its model has changed since, or the index
    does not exist.
    """
    if settings.top < 1:
        raise BadInput(f"--top {settings.top}: ask for at least one hit")
    if settings.instruction and settings.prompt is not None:
        raise BadInput("--prompt and --instruction: both stand before the query; give one of them")
    from toolkit.encoding.search import nearest
    from toolkit.encoding.store import VectorStore

    with at_work(f"search: checks {encoding}"):
        store = VectorStore(encoding, verify=settings.verify)
    find = _find(store, queries=queries, settings=settings)
    queries_QD = _vectors(store, queries=queries, settings=settings)
    with at_work("search: reads the vectors"):
        results = nearest(
            store,
            queries_QD=queries_QD,
            top=settings.top,
            find=find,
            every_chunk=settings.every_chunk,
        )
    results = _with_snippets(results, store=store, corpus=settings.corpus)
    for query, hits in zip(queries, results, strict=True):
        if settings.as_json:
            say_json({"query": query, "hits": [hit.as_json() for hit in hits]})
            continue
        say(query)
        if not hits and settings.bm25:
            say("  no text has a word of it")
        for place, hit in enumerate(hits, 1):
            score = f"{hit.score:.5f}" if settings.hybrid else f"{hit.score:.3f}"
            say(f"  {place}. {score}  {hit.title or hit.id}  ({hit.id})")
            if hit.snippet:
                say(f"            {hit.snippet}")


def _find(store: "VectorStore", *, queries: list[str], settings: Settings) -> "Find | None":
    """What finds rows; None for the exact search."""
    near = None
    if settings.index is not None:
        from toolkit.encoding.index import Index

        found = Index(store, kind=settings.index)
        near = found.nearest_rows
        if found.num_missing:
            say_beside(
                f"index {settings.index} lacks {found.num_missing:,} of {store.num_rows:,} rows, "
                f"which are searched exactly; --build-index {settings.index} adds them"
            )
    if not settings.hybrid and not settings.bm25:
        return near
    from toolkit.encoding.word_index import by_words, hybrid, word_index

    progress = Progress("index of words", total=store.num_rows, unit="rows", least_s=LINE_S)
    words = word_index(store, corpus=settings.corpus, on_rows=progress.advance)
    progress.close()
    if settings.bm25:
        return by_words(words, queries)
    return hybrid(store, words, queries=queries, near=near)


def _vectors(store: "VectorStore", *, queries: list[str], settings: Settings) -> "Vectors":
    """The vectors (Q, D) of the queries; without numbers, where words alone are searched."""
    import numpy as np

    if settings.bm25:
        return np.zeros((len(queries), 0), np.float32)
    # Here and not above: neither the help text nor a refusal must wait for torch.
    from toolkit.encoding.encoder import encoder_of

    with at_work("search: loads the model"):
        encoder = encoder_of(store, model=settings.model)
    prompt = settings.prompt
    if prompt is not None:
        prompt = encoder.prompt_of(prompt, asked_by="--prompt ")
    before = encoder.before_text(settings.instruction)
    return encoder.vectors_of(queries, instruction=before, prompt=prompt)


def _with_snippets(
    results: list[list["Hit"]], *, store: "VectorStore", corpus: Path | None
) -> list[list["Hit"]]:
    """Add to each hit the beginning of its text. Without a corpus the hits stay as they are, and
    one line on stderr says why."""
    from toolkit.encoding.snippets import corpus_of, snippet_of

    def snippet(hit: "Hit") -> str:
        return snippet_of(shards.text(hit.row)[hit.begin : hit.end])

    try:
        shards = corpus_of(store, corpus=corpus, verify=False)
    except BadInput as error:
        say_beside(f"no snippets: {error}")
        return results
    return [[dataclasses.replace(hit, snippet=snippet(hit)) for hit in hits] for hits in results]


if __name__ == "__main__":
    sys.exit(main())

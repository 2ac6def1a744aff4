"""Search in an encoded corpus:  python -m toolkit.search ENC "query" [--top 5] [--json]"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from toolkit.door import guarded
from toolkit.files import BadInput


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.search`."""
    parser = argparse.ArgumentParser(
        prog="python -m toolkit.search",
        description="Find the rows of an encoded corpus that are nearest to a query (cosine).",
        epilog='example:\n  python -m toolkit.search embeddings/wikipedia "who built the canal?"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("encoding", type=Path, help="the output_dir of toolkit.encode")
    parser.add_argument("query", nargs="+", help="one or more queries, each in quotes")
    parser.add_argument("--top", type=int, default=5, help="hits a query (default 5)")
    parser.add_argument(
        "--instruction", default="", help="what is asked of the queries, if trained"
    )
    parser.add_argument("--model", help="the encoder's folder, if it was moved since")
    parser.add_argument("--json", action="store_true", help="one JSON line a query")
    arguments = parser.parse_args(argv)
    return guarded(
        lambda: run(
            arguments.encoding,
            queries=arguments.query,
            top=arguments.top,
            instruction=arguments.instruction,
            model=arguments.model,
            as_json=arguments.json,
        )
    )


def run(
    encoding: Path,
    *,
    queries: list[str],
    top: int,
    instruction: str = "",
    model: str | None = None,
    as_json: bool = False,
) -> None:
    """Print the hits of each query. The queries are embedded as the corpus was, with the
    instruction before them, if there is one.

    Raises `BadInput` when the encoding is not finished or its model is another one by now.
    """
    if top < 1:
        raise BadInput(f"--top {top}: ask for at least one hit")
    # Here and not above: the help text of a door must not wait for torch.
    from toolkit.encoding.encoder import encoder_of
    from toolkit.encoding.search import nearest
    from toolkit.encoding.store import VectorStore

    vectors = VectorStore(encoding)
    encoder = encoder_of(vectors, model=model)
    queries_QD = encoder.vectors_of(queries, instruction=encoder.before_text(instruction))
    found = nearest(vectors, queries_QD=queries_QD, top=top)
    for query, hits in zip(queries, found, strict=True):
        if as_json:
            print(json.dumps({"query": query, "hits": [dataclasses.asdict(hit) for hit in hits]}))
            continue
        print(query)
        for place, hit in enumerate(hits, 1):
            print(f"  {place}. {hit.score:.3f}  {hit.title or hit.id}")


if __name__ == "__main__":
    sys.exit(main())

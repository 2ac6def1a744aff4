"""A real encoder on a laptop:  python -m toolkit.quickstart.demo   (make demo)

SmolLM2-135M (which is fetched once) with the adapters that the project ships embeds the shipped
encyclopedia. Then come the share of the shipped test queries whose article is among the first three
hits, three searches, and the same from Python. With --beside ENC the searches of another encoding
of the encyclopedia stand beside them, such as the one of the quickstart.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit import encode
from toolkit.base.console import at_work, say
from toolkit.base.errors import BadInput
from toolkit.command_line.door import Parser, guarded
from toolkit.encoding.search import nearest
from toolkit.encoding.store import VectorStore
from toolkit.evaluation.retrieval import read_queries
from toolkit.quickstart import smollm2
from toolkit.quickstart.__main__ import FOLDER, QUERIES, make_shards
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EmbedRecipe

TOP = 3
RECIPE = "smollm2_embed"
IN_PYTHON = """\
from toolkit.encoding.encoder import Encoder

encoder = Encoder.from_pretrained({model!r}, adapters={adapters!r})
one, other = encoder.encode(["an animal that builds dams", "the beaver"], normalize_embeddings=True)
print(one @ other)"""


def main(argv: Sequence[str] | None = None) -> int:
    """The door `python -m toolkit.quickstart.demo`."""
    parser = Parser(
        prog="python -m toolkit.quickstart.demo",
        description="Search the shipped encyclopedia with SmolLM2-135M and the shipped adapters.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--beside", type=Path, metavar="ENC", help="another encoding of the encyclopedia"
    )
    arguments = parser.parse_args(argv)
    return guarded(lambda: run(beside=arguments.beside))


def run(*, beside: Path | None = None) -> None:
    """Embed the encyclopedia, unless that was done; score and search. Raises `BadInput` when the
    model cannot be had, or a part fails."""
    recipe = load_recipe(RECIPE)
    assert isinstance(recipe, EmbedRecipe)
    smollm2.run(Path(recipe.encoder.model))
    if not Path(recipe.corpus.input).exists():
        make_shards(recipe.corpus.input)
    if code := encode.main([RECIPE]):
        raise BadInput(f"the demo stopped at toolkit.encode, with code {code}")
    stores = [VectorStore(Path(recipe.output_dir))]
    if beside is not None:
        stores.insert(0, VectorStore(beside))
    judged = read_queries(FOLDER / "queries_test.jsonl")
    names = list(judged.grades)
    texts = [*QUERIES, *(judged.queries[name] for name in names)]
    titles = [titles_of(store, queries=texts) for store in stores]
    for number, query in enumerate(QUERIES):
        say()
        say(query)
        for place in range(TOP):
            columns = [f"{found[number][place]:<34}" for found in titles]
            say(f"  {place + 1}. {'  '.join(columns)}".rstrip())
    say()
    for store, found in zip(stores, titles, strict=True):
        hits = found[len(QUERIES) :]
        share = recall(hits, wanted=[list(judged.grades[name]) for name in names])
        say(f"recall@{TOP} over {len(names)} test queries: {share:.3f}  ({store.directory})")
    say()
    say("The same from Python:")
    say()
    adapters = list(recipe.encoder.adapters)
    for line in IN_PYTHON.format(model=recipe.encoder.model, adapters=adapters).splitlines():
        say(line)


def titles_of(store: VectorStore, *, queries: Sequence[str]) -> list[list[str]]:
    """The titles of the first hits of each query."""
    # Here and not above: neither the help text nor a refusal must wait for torch.
    from toolkit.encoding.encoder import encoder_of

    with at_work("demo: loads the model"):
        encoder = encoder_of(store)
    queries_QD = encoder.vectors_of(queries)
    return [[hit.title for hit in hits] for hits in nearest(store, queries_QD=queries_QD, top=TOP)]


def recall(found: Sequence[Sequence[str]], *, wanted: Sequence[Sequence[str]]) -> float:
    """The mean share of the wanted titles that were found."""
    shares = [
        len(set(some) & set(titles)) / len(titles)
        for some, titles in zip(found, wanted, strict=True)
    ]
    return sum(shares) / len(shares)


if __name__ == "__main__":
    sys.exit(main())

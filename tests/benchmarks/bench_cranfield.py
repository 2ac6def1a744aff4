"""Cranfield by the toolkit's own way: encode its documents, search 225 queries, real judgements.

    python -m tests.benchmarks.bench_cranfield base=toolkit/quickstart/tiny-mistral \\
        causal:base=toolkit/quickstart/tiny-mistral simcse=runs/quickstart/simcse

A name before `=` is a row of the table; one that begins with `causal:` is encoded causally. The
queries of the judgements are counted from 1, whatever number they have in their own file. nDCG@10
and R@100 are those of trec_eval (pytrec_eval-terrier). Two of the 1,400 documents are empty, and go
into the quarantine of the shards; one judgement names one of them, which nobody finds.
"""

import argparse
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytrec_eval

from tests.benchmarks.harness import REAL_DATA
from tests.text.making import shard_articles
from toolkit import encode
from toolkit.encoding.encoder import encoder_of
from toolkit.encoding.search import nearest
from toolkit.encoding.store import VectorStore
from toolkit.settings.schema import Corpus, EmbedRecipe, EncoderSettings
from toolkit.text.records import Article

BM25 = {"ndcg_cut_10": 0.3492, "recall_100": 0.6960}
Scores = dict[str, float]


def documents(folder: Path) -> list[Article]:
    """All 1,400, two of which are empty."""
    content = (folder / "cran.all.1400.xml").read_text(encoding="utf-8")
    found = []
    for inner in re.findall(r"<doc>(.*?)</doc>", content, re.DOTALL):
        number, title, text = (
            (re.search(rf"<{tag}>(.*?)</{tag}>", inner, re.DOTALL) or ["", ""])[1].strip()
            for tag in ("docno", "title", "text")
        )
        found.append(Article(id=number, title=" ".join(title.split()), url="", text=text))
    return found


def queries(folder: Path) -> list[str]:
    """All 225, in the order that the judgements count them by."""
    content = (folder / "cran.qry.xml").read_text(encoding="utf-8")
    titles = re.findall(r"<title>(.*?)</title>", content, re.DOTALL)
    return [" ".join(title.split()) for title in titles]


def judgements(folder: Path) -> dict[str, dict[str, int]]:
    """Of each query, by its place from 1, the documents and their grades."""
    found: dict[str, dict[str, int]] = {}
    for line in (folder / "cranqrel.trec.txt").read_text().splitlines():
        query, _, document, grade = line.split()
        found.setdefault(query, {})[document] = int(grade)
    return found


def scores_of(store: VectorStore, folder: Path) -> Scores:
    """What a search in the encoded documents comes to."""
    queries_QD = encoder_of(store).vectors_of(queries(folder))
    hits = nearest(store, queries_QD=queries_QD, top=100)
    return judged([{hit.id: hit.score for hit in found} for found in hits], folder)


def judged(found: Sequence[Mapping[str, float]], folder: Path) -> Scores:
    """The means of these answers, of each query some documents and their scores."""
    judge = pytrec_eval.RelevanceEvaluator(judgements(folder), set(BM25))
    each = judge.evaluate({str(place): dict(one) for place, one in enumerate(found, 1)})
    return {name: statistics.mean(query[name] for query in each.values()) for name in BM25}


def encoded(folder: Path, *, output: Path, encoder: EncoderSettings) -> VectorStore:
    """The documents, embedded by the encoding program."""
    shards = output / "shards"
    shard_articles(documents(folder), output=shards, max_bad_fraction=0.01)
    recipe = EmbedRecipe(
        kind="embed",
        output_dir=str(output / "encoding"),
        encoder=encoder,
        corpus=Corpus(input=str(shards), unit_rows=256),
    )
    encode.run(recipe, environ={})
    return VectorStore(output / "encoding")


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table, BM25 first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoders", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--data", type=Path, default=REAL_DATA)
    parser.add_argument("--max-tokens", type=int, default=512)
    arguments = parser.parse_args(argv)
    rows = {"BM25": BM25}
    for name, _, path in (given.partition("=") for given in arguments.encoders):
        causal = name.startswith("causal:")
        settings = EncoderSettings(model=path, max_tokens=arguments.max_tokens, causal=causal)
        folder = arguments.data / "cranfield"
        with tempfile.TemporaryDirectory() as output:
            store = encoded(folder, output=Path(output), encoder=settings)
            label = f"{name.removeprefix('causal:')}, causal" if causal else name
            rows[label] = scores_of(store, folder)
    print("\n| | nDCG@10 | R@100 |\n|---|---|---|")
    for name, scores in rows.items():
        print(f"| {name} | {scores['ndcg_cut_10']:.4f} | {scores['recall_100']:.4f} |")


if __name__ == "__main__":
    main()

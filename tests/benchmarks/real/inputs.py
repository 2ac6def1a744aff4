"""What the study trains on: text and pairs that are real and free, and in no test set.

Text: the real Wikipedia dump, WikiText-2, the sentences of WikiSplit. Pairs: SNLI's triplets (dev
and test part), and what tests/benchmarks/real/queries.py makes of the articles.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import ROOT
from tests.benchmarks.real import queries
from toolkit.text.shards import open_shards

DUMP = "mediawiki_dump/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
SPLIT_PARTS = ("tune", "validation", "test")
WIKITEXT_PARTS = ("valid", "test")
UNKNOWN = "<unk>"
LEAST_CHARS = 150  # of the paragraph below a heading


def natural(text: str) -> str:
    """Text as people write it, from text whose tokens stand apart."""
    text = re.sub(r" @(.)@ ", r"\1", text).replace("''", '"')
    text = re.sub(r"(\w) - (\w)", r"\1-\2", text)
    text = re.sub(r" ([.,;:!?)'\]])", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    text = re.sub(r'" ([^"]*?) "', r'"\1"', text)
    return " ".join(text.replace(" n't", "n't").split())


def splits(data: Path, *, parts: Sequence[str] = SPLIT_PARTS) -> Iterator[tuple[str, str]]:
    """WikiSplit: a sentence, and the two sentences that say the same."""
    for part in parts:
        for line in (data / "wikisplit" / f"{part}.tsv").open(encoding="utf-8"):
            whole, split = line.rstrip("\n").split("\t")
            yield natural(whole), natural(split.replace("<::::>", " "))


def articles(data: Path) -> Iterator[tuple[str, str]]:
    """The title and the text of each article of WikiText-2 (valid and test part), without the
    sentences that have an unknown word."""
    for part in WIKITEXT_PARTS:
        text = (data / "wikitext2" / f"{part}.txt").read_text(encoding="utf-8")
        pieces = re.split(r"^ = ([^=]+) = $", text, flags=re.MULTILINE)[1:]
        for title, body in _twos(pieces):
            lines = [natural(_known(line)) for line in body.splitlines() if line[:3] != " = "]
            if UNKNOWN not in title:
                yield natural(title), "\n\n".join(filter(None, lines))


def _known(line: str) -> str:
    return " ".join(part for part in re.split(r"(?<= [.!?]) ", line) if UNKNOWN not in part)


def prepare(data: Path, *, output: Path) -> dict[str, Path]:
    """Make `output`/shards and `output`/pairs, unless they are there."""
    shards, pairs = output / "shards", output / "pairs"
    output.mkdir(parents=True, exist_ok=True)
    if not shards.exists():
        texts = output / "texts.jsonl"
        rows = [{"title": title, "text": text} for title, text in articles(data)]
        _write(texts, [*rows, *({"text": whole} for whole, _ in splits(data))])
        script = [sys.executable, "data_scripts/shard_wikipedia.py", "--output", str(shards)]
        script += ["--input", str(texts), str(data / DUMP)]
        subprocess.run(script, cwd=ROOT, check=True)
    if not pairs.exists():
        sets = output / "sets"
        sets.mkdir(exist_ok=True)
        made = {**queries.of_passages(_passages(shards)), "headings": _headings(data)}
        for name, rows in made.items():
            _write(sets / f"{name}.jsonl", rows)
        script = [sys.executable, "data_scripts/prepare_pairs.py", "--output", str(pairs)]
        script += ["--input", str(data / "snli_devtest")]
        script += [str(sets / f"{name}.jsonl") for name in made]
        subprocess.run(script, cwd=ROOT, check=True)
    return {"mntp": shards, "simcse": shards, "supervised": pairs}


def _passages(shards: Path) -> Iterator[queries.Passage]:
    """The paragraphs of the articles, each with the number of its article."""
    opened = open_shards(shards)
    for row in range(opened.num_rows):
        if opened.record(row).get("title"):
            yield from (queries.Passage(text, row) for text in opened.text(row).split("\n"))


def _headings(data: Path) -> Iterator[dict[str, str]]:
    """WikiText-2: the title, or title and heading, and the first paragraph below them."""
    for part in WIKITEXT_PARTS:
        text = (data / "wikitext2" / f"{part}.txt").read_text(encoding="utf-8")
        query, title = None, ""
        for line in text.splitlines():
            if found := re.fullmatch(r" (=(?: =)*) (.+) \1 ", line):
                heading = natural(found[2])
                title, query = (
                    (heading, heading) if found[1] == "=" else (title, f"{title}: {heading}")
                )
            elif query and UNKNOWN not in query:
                paragraph = natural(_known(line))
                if len(paragraph) >= LEAST_CHARS:
                    yield {"query": query, "positive": paragraph[: queries.MOST_CHARS]}
                    query = None


def _twos(pieces: list[str]) -> Iterator[tuple[str, str]]:
    return zip(pieces[::2], pieces[1::2], strict=True)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

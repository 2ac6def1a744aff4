"""What the study trains on: text and pairs that are real and free, and in no test set.

Text: the real Wikipedia dump, WikiText-2, the sentences of WikiSplit. Pairs: SNLI's triplets (dev
and test part), WikiSplit (a sentence and its split), titles and first paragraphs of articles, a
sentence and the rest of its paragraph (the inverse cloze task of Lee et al., ACL 2019). With a
teacher, sentences that it finds near each other instead of WikiSplit's. With two teachers, glosses
of WordNet too.
"""

import itertools
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import ROOT
from tests.benchmarks.real.glosses import fetched as fetched_wordnet
from tests.benchmarks.real.glosses import glosses
from tests.benchmarks.real.neighbours import neighbours
from tests.benchmarks.real.peers import VOCABULARY, WordLlama
from tests.benchmarks.real.teacher import fetched as fetched_table
from toolkit.text.sentences import split_sentences
from toolkit.text.shards import open_shards

DUMP = "mediawiki_dump/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
SPLIT_PARTS = ("tune", "validation", "test")
NUM_SPLITS = 2000  # pairs of WikiSplit: all of them would be half of the pairs, and easy ones
UNKNOWN = "<unk>"
LEAST_CHARS, MOST_CHARS = 80, 600  # of a first paragraph
LEAST_REST = 200  # characters of a paragraph without its sentence


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
    for part in ("valid", "test"):
        text = (data / "wikitext2" / f"{part}.txt").read_text(encoding="utf-8")
        pieces = re.split(r"^ = ([^=]+) = $", text, flags=re.MULTILINE)[1:]
        for title, body in _twos(pieces):
            lines = [natural(_known(line)) for line in body.splitlines() if line[:3] != " = "]
            if UNKNOWN not in title:
                yield natural(title), "\n\n".join(filter(None, lines))


def _known(line: str) -> str:
    return " ".join(part for part in re.split(r"(?<= [.!?]) ", line) if UNKNOWN not in part)


def prepare(data: Path, *, output: Path) -> dict[str, Path]:
    """Make `output`/shards and the pairs beside it, unless they are there."""
    shards, pairs, taught = output / "shards", output / "pairs", output / "taught"
    wide = output / "wide"
    sets = output / "sets"
    sets.mkdir(parents=True, exist_ok=True)
    if not shards.exists():
        texts = output / "texts.jsonl"
        rows = [{"title": title, "text": text} for title, text in articles(data)]
        _write(texts, [*rows, *({"text": whole} for whole, _ in splits(data))])
        script = [sys.executable, "data_scripts/shard_wikipedia.py", "--output", str(shards)]
        script += ["--input", str(texts), str(data / DUMP)]
        subprocess.run(script, cwd=ROOT, check=True)
    if not pairs.exists():
        _write(
            sets / "wikisplit.jsonl",
            (
                {"query": whole, "positive": split}
                for whole, split in itertools.islice(splits(data), NUM_SPLITS)
            ),
        )
        _write(sets / "titles.jsonl", _first_paragraphs(shards))
        _write(sets / "paragraphs.jsonl", _sentences_and_rests(shards))
        _prepare_pairs(pairs, data=data, sets=sets, names=("wikisplit", "titles", "paragraphs"))
    if not taught.exists():
        embed = WordLlama(fetched_table(), vocabulary=data / VOCABULARY)
        _write(sets / "neighbours.jsonl", neighbours(shards, embed=embed))
        _prepare_pairs(taught, data=data, sets=sets, names=("titles", "paragraphs", "neighbours"))
    if not wide.exists():
        _write(sets / "glosses.jsonl", glosses(fetched_wordnet()))
        names = ("titles", "paragraphs", "neighbours", "glosses")
        _prepare_pairs(wide, data=data, sets=sets, names=names)
    shards_of = dict.fromkeys(("mntp", "simcse"), shards)
    return {**shards_of, "supervised": pairs, "taught": taught, "taught twice": wide}


def _prepare_pairs(output: Path, *, data: Path, sets: Path, names: Sequence[str]) -> None:
    script = [sys.executable, "data_scripts/prepare_pairs.py", "--output", str(output)]
    script += ["--input", str(data / "snli_devtest")]
    script += [str(sets / f"{name}.jsonl") for name in names]
    subprocess.run(script, cwd=ROOT, check=True)


def _first_paragraphs(shards: Path) -> Iterator[dict[str, str]]:
    opened = open_shards(shards)
    for row in range(opened.num_rows):
        title = opened.record(row).get("title")
        first = opened.text(row).split("\n\n")[0][:MOST_CHARS]
        if title and len(first) >= LEAST_CHARS:
            yield {"query": str(title), "positive": first}


def _sentences_and_rests(shards: Path) -> Iterator[dict[str, str]]:
    """A sentence drawn from each paragraph of an article, and the paragraph without it."""
    opened, draw = open_shards(shards), random.Random(0)
    for row in range(opened.num_rows):
        if not opened.record(row).get("title"):
            continue
        for paragraph in filter(None, opened.text(row).split("\n")):
            sentences = split_sentences(paragraph)
            number = draw.randrange(max(1, len(sentences)))
            rest = " ".join(sentences[:number] + sentences[number + 1 :])
            if len(rest) >= LEAST_REST:
                yield {"query": sentences[number], "positive": rest[:MOST_CHARS]}


def _twos(pieces: list[str]) -> Iterator[tuple[str, str]]:
    return zip(pieces[::2], pieces[1::2], strict=True)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

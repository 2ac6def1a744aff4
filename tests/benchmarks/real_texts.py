"""Every distinct text of the real data sets that stand beside the checkout."""

import gzip
import json
import re
from collections.abc import Iterable
from pathlib import Path

from tests.evaluation.real_sets import read_cranfield
from toolkit.evaluation.labelled import read_labelled
from toolkit.evaluation.sts import read_pairs

Texts = list[str]


def read_sentences(data: Path) -> Texts:
    """WikiSplit: some 15,000 sentences of Wikipedia, 47 tokens on average."""
    paths = (data / "wikisplit" / f"{part}.tsv" for part in ("test", "tune", "validation"))
    lines = (line for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    return _distinct(line.split("\t")[0] for line in lines)


def read_passages(data: Path) -> Texts:
    """BoolQ's passages, Cranfield's documents, WikiText-2's paragraphs: 8,600, of 170 tokens."""
    lines = (data / "boolq_passages" / "boolq.jsonl").read_text(encoding="utf-8").splitlines()
    boolq = [json.loads(line)["query"].removeprefix("Passage: ") for line in lines]
    documents, _, _ = read_cranfield(data)
    paragraphs = [
        line.strip()
        for name in ("valid", "test")
        for line in (data / "wikitext2" / f"{name}.txt").read_text("utf-8").splitlines()
        if not line.startswith(" = ")
    ]
    return _distinct([*boolq, *documents.values(), *paragraphs])


def read_short(data: Path) -> Texts:
    """SNLI, STS-B, banking77, the English Web Treebank: 70,000 sentences, 17 tokens on average."""
    found: Texts = []
    for side in ("s1.dev", "s2.dev", "s1.test", "s2.test"):
        lines = (data / "snli_devtest" / side).read_text(encoding="utf-8").splitlines()
        found += map(str.strip, lines)
    for part in ("train", "dev", "test"):
        pairs = read_pairs(data / "stsbenchmark_en" / f"stsb-en-{part}.csv")
        found += [*pairs.first, *pairs.second]
    for part in ("train", "test"):
        found += read_labelled(data / "banking77" / f"{part}.csv")[0]
    trees = data / "ud_english_ewt"
    for path in sorted(trees.glob("*.conllu*")):
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        found += re.findall(r"^# text = (.*)$", content.decode(), re.MULTILINE)
    return _distinct(found)


def read_all(data: Path) -> Texts:
    """All of them, 93,400: half of them below 18 tokens, a hundredth above 290."""
    return _distinct([*read_sentences(data), *read_passages(data), *read_short(data)])


def _distinct(texts: Iterable[str]) -> Texts:
    return list(dict.fromkeys(text for text in texts if text))

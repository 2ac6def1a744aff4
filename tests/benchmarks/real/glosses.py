"""Pairs from WordNet (Debian's package wordnet-base): the words of a meaning, its gloss, and the
gloss of another meaning that stands beside it under the same broader one."""

import io
import random
import re
import subprocess
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.harness import ROOT
from toolkit.base.files import sha256_of, write_atomic

PACKAGE = "wordnet-base"
SHA256 = "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752"  # of 1:3.0-37
KEPT = ROOT / ".cache" / "wordnet-base.deb"
PARTS = ("noun", "verb")
NUM_PAIRS = 5000
BROADER = re.compile(r" @ (\d{8}) ")


def fetched() -> Path:
    """Debian's package, from its index unless it is there; it is not installed."""
    if not KEPT.exists():
        with tempfile.TemporaryDirectory() as folder:
            command = ["apt-get", "download", PACKAGE]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            (package,) = Path(folder).glob("*.deb")
            write_atomic(KEPT, package.read_bytes())
    if sha256_of(KEPT) != SHA256:
        raise SystemExit(f"{KEPT}: is another package than {PACKAGE} 1:3.0-37; delete it")
    return KEPT


def glosses(package: Path) -> Iterator[dict[str, str]]:
    """Pairs with one negative, drawn from the nouns and verbs that have such a sibling."""
    read = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", str(package)], check=True, capture_output=True
    )
    rows, siblings = [], defaultdict(list)
    with tarfile.open(fileobj=io.BytesIO(read.stdout)) as archive:
        for part in PARTS:
            file = archive.extractfile(f"./usr/share/wordnet/data.{part}")
            assert file
            for line in file.read().decode().splitlines():
                if not line.startswith(" "):
                    words, gloss, broader = _meaning(line)
                    key = (part, broader)
                    rows.append((words, gloss, key))
                    siblings[key].append(gloss)
    draw = random.Random(0)
    known = [row for row in rows if row[2][1] and len(siblings[row[2]]) > 1]
    for words, gloss, key in draw.sample(known, NUM_PAIRS):
        others = [other for other in siblings[key] if other != gloss]
        if others:
            yield {"query": words, "positive": gloss, "negative": draw.choice(others)}


def _meaning(line: str) -> tuple[str, str, str | None]:
    """Words, gloss without its examples, and the number of the broader meaning."""
    data, _, gloss = line.partition(" | ")
    fields = data.split(" ")
    words = [fields[4 + 2 * n].replace("_", " ") for n in range(int(fields[3], 16))]
    broader = BROADER.search(data)
    return ", ".join(words), gloss.split('; "')[0].strip(), broader[1] if broader else None

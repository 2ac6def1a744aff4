"""What each choice costs: texts per second, memory, size on disk; the same passages, in turn.

    python -m tests.benchmarks.real.costs --table TABLE.safetensors --runs 3

Each contender is a process of its own: it loads, embeds (BM25: indexes) the passages once without
a clock and once with it. Memory is the largest that the process held, libraries included. Size on
disk is that of the table, or of the base and its adapters. TABLE as in peers.py.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks.harness import REAL_DATA, ROOT, Contender, compare, machine, table
from tests.benchmarks.real.bm25 import BM25
from tests.benchmarks.real.peers import VOCABULARY, TfIdf, WordLlama
from tests.benchmarks.real_texts import read_passages
from toolkit.encoding.encoder import Encoder
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EmbedRecipe

NUM_TEXTS = 300
TINY = ROOT / "toolkit" / "quickstart" / "tiny-mistral"


def smollm2() -> tuple[Callable[[Sequence[str]], object], list[Path]]:
    """The encoder of `make demo`, and what it is made of."""
    recipe = load_recipe("smollm2_embed")
    assert isinstance(recipe, EmbedRecipe)
    files = [ROOT / name for name in (recipe.encoder.model, *recipe.encoder.adapters)]
    return Encoder(recipe.encoder).vectors_of, files


def embedder(
    name: str, *, given: argparse.Namespace
) -> tuple[Callable[[Sequence[str]], object], list[Path]]:
    """What embeds or indexes a list of texts, and its files or folders."""
    if name == "BM25":
        return BM25, []
    if name == "TF-IDF":
        return lambda texts: TfIdf(texts)(texts), []
    if name == "WordLlama":
        vocabulary = given.data / VOCABULARY
        return WordLlama(given.table, vocabulary=vocabulary), [given.table, vocabulary]
    if name == "tiny model":
        return Encoder.from_pretrained(str(TINY)).vectors_of, [TINY]
    return smollm2()


CHOICES = ("SmolLM2-135M with adapters", "tiny model", "WordLlama", "TF-IDF", "BM25")


def measure(name: str, *, given: argparse.Namespace) -> dict[str, float]:
    """The figures of one contender, in this process."""
    texts = read_passages(given.data)[:NUM_TEXTS]
    embed, files = embedder(name, given=given)
    embed(texts)
    began = time.perf_counter()
    embed(texts)
    seconds = time.perf_counter() - began
    size = sum(
        path.stat().st_size
        for place in files
        for path in ([place] if place.is_file() else place.rglob("*"))
        if path.is_file()
    )
    return {"texts_per_s": len(texts) / seconds, "disk_mb": size / 1e6}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all of them, or in a process of its own one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=REAL_DATA)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", choices=CHOICES, help="print its figures as JSON")
    given = parser.parse_args(argv)
    if given.one:
        print(json.dumps(measure(given.one, given=given)))
        return
    command = [sys.executable, "-m", "tests.benchmarks.real.costs", "--data", str(given.data)]
    command += ["--table", str(given.table), "--one"]
    found = compare([Contender(name, [*command, name]) for name in CHOICES], runs=given.runs)
    figures = {
        "texts/s": lambda run: run.said["texts_per_s"],
        "memory, MiB": lambda run: run.peak_mib,
        "disk, MB": lambda run: max(run.said["disk_mb"], 1e-9),
    }
    print(f"{NUM_TEXTS} passages, {machine()}, median of {given.runs}\n")
    print(table(found, figures=figures))


if __name__ == "__main__":
    main()

"""Encoding beside sentence-transformers (and llm2vec): same weights, same real texts, fp32.

    python -m tests.benchmarks.bench_encode --runs 5

The shipped tiny model, in both directions. Texts: BoolQ's passages and WikiSplit's sentences as
they are (natural); their first eight words (short); sentences with a hundredth of texts of some
2,000 tokens among them (tail). Each contender is a whole process, in turn; counted is its `encode`
alone, without the loading. Vectors must agree: cosine >= 0.9999.
"""

import itertools
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.benchmarks.harness import ROOT, Contender, compare, machine, options, table
from toolkit.model.backbone import load_config
from toolkit.model.tokenizer import load_tokenizer
from toolkit.model.weights import merge_weights, write_encoder_files

MODEL = ROOT / "toolkit" / "quickstart" / "tiny-mistral"
PEER = Path(__file__).with_name("peers") / "sentence_transformers_encode.py"
MAX_TOKENS = {"natural": 512, "short": 512, "tail": 1024}
LEAST_COSINE = 0.9999


def texts_of(data: Path, *, kind: str, rows: int) -> list[str]:
    """So many texts, in an order that a seed decides."""
    lines = (data / "boolq_passages" / "boolq.jsonl").read_text(encoding="utf-8").splitlines()
    passages = list(
        dict.fromkeys(json.loads(line)["query"].removeprefix("Passage: ") for line in lines)
    )
    tables = ((data / "wikisplit" / f"{name}.tsv").read_text("utf-8") for name in ("test", "tune"))
    split = (line.split("\t")[0] for text in tables for line in text.splitlines())
    sentences = list(dict.fromkeys(split))
    rng = random.Random(0)
    if kind == "tail":
        found = sentences[:rows]
        source = itertools.cycle(passages)
        for place in rng.sample(range(len(found)), max(1, len(found) // 100)):
            found[place] = " ".join(next(source) for _ in range(16))
        return found
    found = passages + sentences
    rng.shuffle(found)
    found = found[:rows]
    return [" ".join(text.split()[:8]) for text in found] if kind == "short" else found


def write_model(folder: Path) -> None:
    """The shipped model as a folder that all contenders read, bidirectional, in fp32."""
    folder.mkdir()
    merge_weights(MODEL, dtype="fp32", out=folder)
    config = load_config(str(MODEL))
    tokenizer = load_tokenizer(str(MODEL))
    write_encoder_files(folder, config=config, tokenizer=tokenizer, max_tokens=512, dtype="fp32")


def contenders(folder: Path, *, kind: str) -> list[Contender]:
    """Ours first."""
    rest = [str(folder / "model"), str(folder / f"{kind}.jsonl"), str(MAX_TOKENS[kind])]
    ours = [sys.executable, "-m", "tests.benchmarks.encode_texts", *rest]
    theirs = [sys.executable, str(PEER), *rest]
    return [
        Contender("ours", [*ours, str(folder / "ours.npy")]),
        Contender("sentence-transformers", [*theirs, str(folder / "theirs.npy")]),
    ]


def least_cosine(folder: Path) -> float:
    """Of the vectors of the two, text by text."""
    pair = [np.load(folder / f"{name}.npy").astype(np.float64) for name in ("ours", "theirs")]
    norms = [np.linalg.norm(vectors, axis=1) for vectors in pair]
    cosines = (pair[0] * pair[1]).sum(axis=1) / np.maximum(norms[0] * norms[1], 1e-12)
    return float(cosines.min())


def main(argv: Sequence[str] | None = None) -> None:
    """Make the input, run, print a table a kind of texts."""
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--only", choices=tuple(MAX_TOKENS), action="append")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        for kind in arguments.only or MAX_TOKENS:
            texts = texts_of(arguments.data, kind=kind, rows=arguments.rows)
            lines = "".join(json.dumps(text) + "\n" for text in texts)
            (folder / f"{kind}.jsonl").write_text(lines, encoding="utf-8")
            found = compare(contenders(folder, kind=kind), runs=arguments.runs, warmup=0)
            cosine = least_cosine(folder)
            assert cosine >= LEAST_COSINE, f"{kind}: a vector differs, cosine {cosine}"
            print(f"\n{kind}, {len(texts):,} texts, median of {arguments.runs}; {machine()}")
            print(f"least cosine {cosine:.6f}\n")
            figures = {
                "texts/s": lambda run: float(run.said["rows_per_s"]),
                "peak MiB": lambda run: run.peak_mib,
            }
            print(table(found, figures=figures))


if __name__ == "__main__":
    main()

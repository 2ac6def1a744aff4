"""Encoding beside sentence-transformers and llm2vec: same weights, same real texts, fp32; and in
bf16 beside them.

    python -m tests.benchmarks.bench_encode --runs 5 [--peers PYTHON]

The shipped tiny model, in both directions, or the decoder that --model names. Texts: drawn from
all real data sets as they are (natural); sentences or passages alone; the first eight words of the
natural ones (short); sentences with a hundredth of texts of some 2,000 tokens among them (tail),
which are cut to 1,024. Each contender is a whole process, in turn, as a user would start it: on all
cores, or on as many as `OMP_NUM_THREADS` says. Counted is its `encode` alone, without the loading.
Vectors must agree: cosine >= 0.9999, in bf16 0.999; with llm2vec, which pools other tokens of a
text that it cuts, of texts that are whole.
"""

import itertools
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tests.benchmarks.harness import ROOT, Contender, compare, machine, options, table
from tests.benchmarks.real_texts import read_all, read_passages, read_sentences
from toolkit import export
from toolkit.batching.tokenizer import text_tokenizer
from toolkit.evaluation.sts import cosines
from toolkit.model.backbone import load_config
from toolkit.model.tokenizer import load_tokenizer
from toolkit.model.weights import merge_weights, write_encoder_files
from toolkit.settings.model_source import resolve_model

MODEL = ROOT / "toolkit" / "quickstart" / "tiny-mistral"
PEERS = Path(__file__).with_name("peers")
SOURCES = {
    "natural": read_all,
    "sentences": read_sentences,
    "passages": read_passages,
    "short": read_all,
    "tail": read_sentences,
}
MAX_TOKENS = 1024
LEAST_COSINE = {"ours, bf16": 0.999, "sentence-transformers": 0.9999, "llm2vec": 0.9999}


def texts_of(data: Path, *, kind: str, rows: int) -> list[str]:
    """So many texts, in an order that a seed decides."""
    found = SOURCES[kind](data)
    rng = random.Random(0)
    rng.shuffle(found)
    found = found[:rows]
    if kind == "short":
        return [" ".join(text.split()[:8]) for text in found]
    if kind == "tail":
        source = itertools.cycle(read_passages(data))
        for place in rng.sample(range(len(found)), max(1, len(found) // 100)):
            found[place] = " ".join(next(source) for _ in range(16))
    return found


def write_models(folder: Path, *, model: Path = MODEL) -> None:
    """The model as folders that all contenders read, bidirectional, in fp32."""
    (folder / "model").mkdir()
    merge_weights(model, dtype="fp32", out=folder / "model")
    source = resolve_model(str(model))
    config, tokenizer = load_config(source), load_tokenizer(source)
    given = {"config": config, "tokenizer": tokenizer, "max_tokens": MAX_TOKENS, "dtype": "fp32"}
    write_encoder_files(folder / "model", **given)
    arguments = [str(model), str(folder / "llm2vec"), "--format", "llm2vec"]
    assert export.main(arguments) == 0


def contenders(folder: Path, *, kind: str, peers: str | None) -> list[Contender]:
    """Ours first."""

    def command(name: str, *program: str, model: str = "model", last: str = "") -> Contender:
        rest = [str(folder / model), str(folder / f"{kind}.jsonl"), str(MAX_TOKENS)]
        rest += [str(folder / f"{name}.npy"), *([last] if last else [])]
        return Contender(name, [*program, *rest])

    ours = (sys.executable, "-m", "tests.benchmarks.encode_texts")
    found = [
        command("ours", *ours),
        command("ours, bf16", *ours, last="bf16"),
        command(
            "sentence-transformers", sys.executable, str(PEERS / "sentence_transformers_encode.py")
        ),
    ]
    if peers:
        script = str(PEERS / "llm2vec_encode_texts.py")
        found.append(command("llm2vec", peers, script, model="llm2vec"))
    return found


def check(folder: Path, *, names: Sequence[str], whole_N: NDArray[np.bool_]) -> str:
    """That all vectors agree with ours; the least cosines in words."""
    told = []
    ours_ND = np.load(folder / "ours.npy").astype(np.float64)
    for name in names:
        theirs_ND = np.load(folder / f"{name}.npy").astype(np.float64)
        cosine_N = cosines(ours_ND, second_PD=theirs_ND)
        least = float(cosine_N[whole_N if name == "llm2vec" else slice(None)].min())
        assert least >= LEAST_COSINE[name], f"{name}: a vector differs, cosine {least}"
        told.append(f"{name} {least:.6f}")
    return "least cosine: " + ", ".join(told)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the input, run, print a table a kind of texts."""
    parser = options(__doc__, peers="llm2vec 0.2.3")
    parser.add_argument("--rows", type=int, help="texts; 20,000 natural ones, 1,000 of other kinds")
    parser.add_argument("--only", choices=SOURCES, action="append")
    parser.add_argument("--model", type=Path, default=MODEL, help="a decoder's folder")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder, model=arguments.model)
        tokenizer = text_tokenizer(resolve_model(str(arguments.model)), max_tokens=2 * MAX_TOKENS)
        for kind in arguments.only or SOURCES:
            rows = arguments.rows or (20_000 if kind == "natural" else 1000)
            texts = texts_of(arguments.data, kind=kind, rows=rows)
            lines = "".join(json.dumps(text) + "\n" for text in texts)
            (folder / f"{kind}.jsonl").write_text(lines, encoding="utf-8")
            whole_N = np.array([len(ids_T) <= MAX_TOKENS for ids_T in tokenizer.encode(texts)])
            every = contenders(folder, kind=kind, peers=arguments.peers)
            found = compare(every, runs=arguments.runs, warmup=0)
            told = check(folder, names=[one.name for one in every[1:]], whole_N=whole_N)
            print(
                f"\n{kind}, {len(texts):,} texts, median of {arguments.runs}; "
                f"{torch.get_num_threads()} threads, {machine()}"
            )
            print(f"{told}\n")
            figures = {
                "texts/s": lambda run: float(run.said["rows_per_s"]),
                "peak MiB": lambda run: run.peak_mib,
            }
            print(table(found, figures=figures), flush=True)


if __name__ == "__main__":
    main()

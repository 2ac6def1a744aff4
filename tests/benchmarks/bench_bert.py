"""Encoding with a BERT beside sentence-transformers, on torch, on ONNX and on OpenVINO.

    python -m tests.benchmarks.bench_bert --runs 5 [--onnx PYTHON] [--openvino PYTHON]

An encoder of the shape of all-MiniLM-L6-v2 (6 layers of 384 numbers, mean, normalised) with random
weights, and a tokenizer made of the texts. Those are natural ones, drawn from all real data sets,
cut to 256 tokens; in fp32. Each contender is a whole process, in turn, on as many threads as
`OMP_NUM_THREADS` says. Counted is its `encode` alone, without the loading. PYTHON is that of an
environment with `sentence-transformers[onnx]` or `[openvino]`. Vectors must agree to a cosine of
0.9999.
"""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel

from tests.benchmarks.bench_encode import PEERS, texts_of
from tests.benchmarks.harness import Contender, compare, machine, options, table
from toolkit.base.files import write_json
from toolkit.evaluation.sts import cosines

MAX_TOKENS = 256
WIDTH, VOCABULARY = 384, 8192
LEAST_COSINE = 0.9999
TOKENIZER = "PreTrainedTokenizerFast"  # a class of transformers 4 as of 5


def write_model(folder: Path, *, texts: Sequence[str]) -> None:
    """The encoder, with the names that every version of sentence-transformers knows, and a
    tokenizer made of these texts."""
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=12,
        pad_token_id=tokenizer.token_to_id("[PAD]"),
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    named |= {"pad_token": "[PAD]", "mask_token": "[MASK]", "tokenizer_class": TOKENIZER}
    write_json(folder / "tokenizer_config.json", {**named, "model_max_length": MAX_TOKENS})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": MAX_TOKENS})
    pooling = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{name}"}
        for n, (name, path) in enumerate(paths.items())
    ]
    write_json(folder / "modules.json", modules)
    for path in filter(None, paths.values()):
        (folder / path).mkdir()
        write_json(folder / path / "config.json", pooling if path == "1_Pooling" else {})


def contenders(folder: Path, *, onnx: str | None, openvino: str | None) -> list[Contender]:
    """Ours first."""

    def command(name: str, *program: str, last: str = "") -> Contender:
        rest = [str(folder / "model"), str(folder / "texts.jsonl"), str(MAX_TOKENS)]
        rest += [str(folder / f"{name}.npy"), *([last] if last else [])]
        return Contender(name, [*program, *rest])

    script = str(PEERS / "sentence_transformers_encode.py")
    found = [
        command("ours", sys.executable, "-m", "tests.benchmarks.encode_texts"),
        command("sentence-transformers", sys.executable, script),
    ]
    for backend, python in (("onnx", onnx), ("openvino", openvino)):
        if python:
            name = f"sentence-transformers, {backend}"
            found.append(command(name, python, script, last=backend))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Make the model and its texts, run, print the table."""
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--onnx", metavar="PYTHON")
    parser.add_argument("--openvino", metavar="PYTHON")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = texts_of(arguments.data, kind="natural", rows=arguments.rows)
        write_model(folder / "model", texts=texts)
        lines = "".join(json.dumps(text) + "\n" for text in texts)
        (folder / "texts.jsonl").write_text(lines, encoding="utf-8")
        every = contenders(folder, onnx=arguments.onnx, openvino=arguments.openvino)
        found = compare(every, runs=arguments.runs, warmup=0)
        ours_ND = np.load(folder / "ours.npy").astype(np.float64)
        others = {one.name: np.load(folder / f"{one.name}.npy") for one in every[1:]}
    threads = os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())
    print(f"\n{len(texts):,} texts, median of {arguments.runs}; {threads} threads, {machine()}\n")
    figures = {
        "texts/s": lambda run: float(run.said["rows_per_s"]),
        "peak MiB": lambda run: run.peak_mib,
    }
    print(table(found, figures=figures), flush=True)
    for name, theirs_ND in others.items():
        least = float(cosines(ours_ND, second_PD=theirs_ND.astype(np.float64)).min())
        print(f"least cosine beside {name}: {least:.6f}")
        assert least >= LEAST_COSINE, name


if __name__ == "__main__":
    main()

"""Peak memory of an encoding of a million rows beside one of 20,000, and beside one that reuses it.

    python -m tests.benchmarks.bench_rows [--rows 1000000]

From shards on the disk to vectors on the disk, by the real door, alone. Synthetic rows of eight
real words; a random model of one narrow layer, for the model's part is the same whatever the rows
are. Every row must be there. The last encoding reuses the one before: a hundredth of its rows has
changed.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, MistralConfig

from tests.benchmarks.harness import ROOT, Contender, machine, make_shards, run_once
from toolkit.encoding.store import VectorStore
from toolkit.model.tokenizer import load_tokenizer
from toolkit.settings.model_source import resolve_model

TINY = ROOT / "toolkit" / "quickstart" / "tiny-mistral"
FEW = 20_000


def write_model(folder: Path) -> None:
    """A narrow Mistral with random weights and the shipped tokenizer."""
    tokenizer = load_tokenizer(resolve_model(str(TINY)))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def write_corpus(folder: Path, *, rows: int, changed_every: int | None = None) -> None:
    """Shards of so many rows, none like another; some have one more word."""
    words = [
        word
        for word in sorted(load_tokenizer(resolve_model(str(TINY))).get_vocab())
        if word.isalpha()
    ]
    rng = random.Random(0)
    source = folder.with_suffix(".jsonl")
    with source.open("w", encoding="utf-8") as handle:
        for number in range(rows):
            text = f"{number} {' '.join(rng.choices(words, k=8))}"
            if changed_every and number % changed_every == 0:
                text += " more"
            handle.write(json.dumps({"id": str(number), "text": text}) + "\n")
    make_shards(source, output=folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Make both corpora, embed them, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args(argv)
    print(machine())
    print("| rows | peak memory, libraries and model included | rows/s |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        many = arguments.rows
        write_corpus(folder / "few", rows=FEW)
        write_corpus(folder / "many", rows=many)
        write_corpus(folder / "changed", rows=many, changed_every=100)
        measure(folder, corpus="few", rows=FEW)
        plain_mib = measure(folder, corpus="many", rows=many)
        reuse = f"reuse={folder / 'vectors-many'}"
        peak_mib = measure(folder, reuse, corpus="changed", rows=many)
    print(f"with reuse {peak_mib / plain_mib:.3f} of the memory without")


def measure(folder: Path, *overrides: str, corpus: str, rows: int) -> float:
    """Embed a corpus, print its row of the table; the peak in MiB."""
    output = folder / f"vectors-{corpus}"
    command = [sys.executable, "-m", "toolkit.encode", "embed_corpus", f"output_dir={output}"]
    command += [f"encoder.model={folder / 'model'}", f"corpus.input={folder / corpus}"]
    command += ["encoder.dtype=fp32", "schedule=alone", *overrides]
    run = run_once(Contender(corpus, command))
    assert VectorStore(output).num_rows == rows
    name = f"{rows:,}{', 1 % of them changed, the others reused' * bool(overrides)}"
    print(f"| {name} | {run.peak_mib:,.0f} MiB | {rows / run.wall_s:,.0f} |", flush=True)
    return run.peak_mib


if __name__ == "__main__":
    main()

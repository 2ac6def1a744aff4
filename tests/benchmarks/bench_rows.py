"""Peak memory of an encoding of a million rows beside one of 20,000.

    python -m tests.benchmarks.bench_rows [--rows 1000000]

From shards on the disk to vectors on the disk, by the real door, alone. Synthetic rows of eight
real words; a random model of one narrow layer, for the model's part is the same whatever the rows
are. Every row must be there.
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


def write_corpus(folder: Path, *, rows: int) -> None:
    """Shards of so many rows, none like another."""
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
        for rows in (FEW, arguments.rows):
            write_corpus(folder / f"shards{rows}", rows=rows)
            output = folder / f"vectors{rows}"
            command = [sys.executable, "-m", "toolkit.encode", "embed_corpus"]
            command += [f"output_dir={output}", f"encoder.model={folder / 'model'}"]
            command += [f"corpus.input={folder / f'shards{rows}'}", "encoder.dtype=fp32"]
            run = run_once(Contender(f"{rows}", [*command, "schedule=alone"]))
            assert VectorStore(output).num_rows == rows
            print(f"| {rows:,} | {run.peak_mib:,.0f} MiB | {rows / run.wall_s:,.0f} |", flush=True)


if __name__ == "__main__":
    main()

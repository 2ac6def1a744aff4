"""One GPU: MNTP with LoRA, GradCache beside a plain batch, packed rows beside padded ones.

    python -m tests.benchmarks.bench_gpu               (a Mistral of 7B with random weights)
    python -m tests.benchmarks.bench_gpu --shape tiny  (tries the script anywhere)

Random weights compute as fast as trained ones; tokenizer and text are what the project ships. MNTP:
blocks of 512 tokens, LoRA of rank 16, bf16. GradCache: eight micro-batches beside a batch of one.
The first step of a run is not counted. Parity: mean-pooled vectors of packed and padded rows.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import MistralConfig, MistralForCausalLM

from tests.benchmarks.harness import ROOT, Contender, compare, machine, table
from toolkit.encoding.encoder import Encoder
from toolkit.settings.schema import EncoderSettings

QUICKSTART = ROOT / "toolkit" / "quickstart"
LORA = ["model.lora.rank=16", "model.lora.alpha=32", "model.dtype=bf16"]
QUIET = ["train.warmup_steps=0", "train.save_every_steps=100000", "deepspeed.config=zero2"]
SHAPES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None},
    "100m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8}
    | {"num_attention_heads": 12, "num_key_value_heads": 4, "sliding_window": None},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None},
}
# Blocks of MNTP and its micro-batch; sentences of a micro-batch; tokens of a block.
SIZES = {"7b": (64, 16, 128, 512), "tiny": (4, 2, 4, 64)}


def make_model(folder: Path, *, shape: str) -> None:
    """Random weights in bf16 under Mistral's real vocabulary size, with the shipped tokenizer."""
    for path in (QUICKSTART / "tiny-mistral").glob("*"):
        if path.suffix != ".safetensors":
            shutil.copy(path, folder / path.name)
    config = MistralConfig(vocab_size=32000, max_position_embeddings=32768, **SHAPES[shape])
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = MistralForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="4GB")


def training(folder: Path, *, shape: str, steps: int) -> dict[str, list[Contender]]:
    """What is measured, by title."""
    blocks, micro_blocks, sentences, block_tokens = SIZES[shape]
    given = [f"model.base={folder / 'model'}", f"data.train={folder / 'shards'}", *LORA, *QUIET]
    given.append(f"train.steps={steps}")

    def run(name: str, recipe: str, rows: int, micro: int, *more: str) -> Contender:
        sizes = [f"train.global_batch_rows={rows}", f"train.micro_batch_rows={micro}"]
        command = [sys.executable, "-m", "tests.benchmarks.train_steps", recipe]
        return Contender(name, [*command, *given, *sizes, *more])

    length = f"data.max_tokens={block_tokens}"
    # No attention dropout: torch's flash attention over packed rows has none.
    plain = ["data.max_tokens=128", "model.attention_dropout=0.0"]
    return {
        "MNTP, LoRA": [
            run("packed", "tiny_mntp", blocks, micro_blocks, length),
            run("padded", "tiny_mntp", blocks, micro_blocks, length, "model.attention=sdpa"),
        ],
        "SimCSE, LoRA": [
            run("plain", "tiny_simcse", sentences, sentences, *plain),
            run("GradCache, 8 micro-batches", "tiny_simcse", 8 * sentences, sentences, *plain),
        ],
    }


def parity(model: Path) -> float:
    """The largest relative difference of a vector, packed and padded, in bf16."""
    lines = (QUICKSTART / "sts_test.tsv").read_text(encoding="utf-8").splitlines()[:64]
    texts = [line.replace("\t", " ") * (1 + number % 7) for number, line in enumerate(lines)]
    found = []
    for attention in ("packed", "sdpa"):
        settings = EncoderSettings(model=str(model), dtype="bf16", attention=attention)
        vectors = torch.from_numpy(Encoder(settings).encode(texts)).double()
        found.append(vectors)
    packed, padded = found
    return float(((packed - padded).norm(dim=1) / padded.norm(dim=1)).max())


def main(argv: Sequence[str] | None = None) -> None:
    """Make the model and the shards, run, print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SIZES, default="7b")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="a run; the first is not counted")
    arguments = parser.parse_args(argv)
    if arguments.shape == "7b" and not torch.cuda.is_available():
        parser.error("no GPU here: --shape tiny tries the script without one")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        make_model(folder / "model", shape=arguments.shape)
        shard = [sys.executable, "data_scripts/shard_wikipedia.py", "--output", f"{name}/shards"]
        source = ["--input", str(QUICKSTART / "encyclopedia.xml.bz2")]
        subprocess.run([*shard, *source], cwd=ROOT, check=True)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else machine()
        for title, contenders in training(
            folder, shape=arguments.shape, steps=arguments.steps
        ).items():
            found = compare(contenders, runs=arguments.runs, warmup=0)
            print(f"\n{title}, {arguments.shape}, median of {arguments.runs}; {device}\n")
            figures = {
                key: lambda run, key=key: run.said.get(key, float("nan"))
                for key in ("tokens_per_s", "mfu", "hfu", "memory_gib")
            }
            print(table(found, figures=figures))
        print(json.dumps({"packed beside padded, largest difference": parity(folder / "model")}))


if __name__ == "__main__":
    main()

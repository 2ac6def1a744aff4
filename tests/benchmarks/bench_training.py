"""Training steps beside llm2vec 0.2.3 and sentence-transformers: same weights, same texts.

    make benchmark-training
    python -m tests.benchmarks.bench_training --runs 5 --peers PYTHON

A Mistral of the shipped model's shape with Mistral's real vocabulary of 32,000 and random weights,
LoRA of rank 16 on all linear layers, fp32. MNTP: 32 blocks of 512 tokens a step, as in the paper,
with activation checkpointing (as there) and without. SimCSE: 128 sentences a step, limit 128; and
1,024 with GradCache, 64 of them at a time; and ours alone at 1,024 and 16,384 rows of 8 tokens,
for its memory, in one step (what is free at its end is given back). Each
contender runs as a whole process; its first step, where there are more, is not counted.

With --model FOLDER that decoder (of Llama's or Mistral's family) with its own weights instead: 16
blocks of 128 tokens and 64 sentences of at most 32, as the recipes of SmolLM2-135M.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks import corpora
from tests.benchmarks.harness import ROOT, Contender, compare, machine, options, table
from toolkit.model.llm2vec_format import rewrite_for_llm2vec
from toolkit.model.tokenizer import load_tokenizer
from toolkit.settings.model_source import resolve_model
from toolkit.text.shards import open_shards

TOKENIZER = "tokenizer_mistral/tokenizer.model.v1"
PEERS = Path(__file__).with_name("peers")
LARGE_ROWS, MINI_ROWS = 1024, 64


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a step is made of, and the model."""

    model: Path
    theirs: Path  # the same, as llm2vec reads it
    block_rows: int = 32
    block_tokens: int = 512
    sentence_rows: int = 128
    sentence_tokens: int = 128


KINDS = ("mntp", "recomputed", "simcse", "cached", "flat")
LORA = ["model.lora.rank=16", "model.lora.alpha=32", "model.lora.dropout=0.05"]
QUIET = ["train.warmup_steps=0", "train.save_every_steps=1000", "deepspeed.config=zero2"]


def ours(recipe: str, *overrides: str, steps: int, name: str = "ours") -> Contender:
    """Our own door."""
    command = [sys.executable, "-m", "tests.benchmarks.train_steps", recipe, *LORA, *QUIET]
    return Contender(name, [*command, f"train.steps={steps}", *overrides])


def theirs(name: str, python: str, script: str, *arguments: object) -> Contender:
    """A peer's script."""
    return Contender(name, [python, str(PEERS / script), *map(str, arguments)])


def prepare_model(data: Path, folder: Path, *, peers: str, model: Path | None) -> Sizes:
    """A model with random weights, or a copy of the given one that llm2vec can read."""
    copy = folder / "model"
    if model is None:
        script = [peers, str(PEERS / "llm2vec_model.py"), str(copy), str(data / TOKENIZER)]
        subprocess.run(script, check=True)
        return Sizes(copy, copy)
    shutil.copytree(model, copy)
    tokenizer = load_tokenizer(resolve_model(str(model)))
    rewrite_for_llm2vec(copy, tokenizer=tokenizer, max_tokens=128)
    return Sizes(model, copy, 16, 128, 64, 32)


def prepare(data: Path, folder: Path) -> None:
    """Shards of the real dump; its documents and its sentences for the peers."""
    shard = [sys.executable, "data_scripts/shard_wikipedia.py", "--input", str(data / corpora.DUMP)]
    subprocess.run([*shard, "--output", str(folder / "shards")], cwd=ROOT, check=True)
    shards = open_shards(folder / "shards")
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as handle:
        for row in range(len(shards)):
            handle.write(json.dumps({"text": shards.text(row)}) + "\n")
    sentences = [
        shards.sentence(row, k)
        for row in range(len(shards))
        for k in range(shards.num_sentences[row])
    ]
    lines = [" ".join(sentence.split()) for sentence in sentences]
    (folder / "sentences.txt").write_text("\n".join(lines), encoding="utf-8")


def mntp(folder: Path, *, sizes: Sizes, peers: str, steps: int, recompute: bool) -> list[Contender]:
    """One step is the paper's batch."""
    rows, tokens = sizes.block_rows, sizes.block_tokens
    return [
        ours(
            "tiny_mntp",
            f"model.base={sizes.model}",
            f"data.train={folder / 'shards'}",
            f"train.global_batch_rows={rows}",
            f"train.micro_batch_rows={rows}",
            f"data.max_tokens={tokens}",
            f"model.activation_checkpointing={json.dumps(recompute)}",
            steps=steps,
        ),
        theirs(
            "llm2vec (HF Trainer)",
            peers,
            "llm2vec_mntp.py",
            *(sizes.theirs, folder / "texts.jsonl", steps, rows, tokens, int(recompute)),
        ),
    ]


def simcse(folder: Path, *, sizes: Sizes, peers: str, steps: int, cached: bool) -> list[Contender]:
    """A plain batch against llm2vec, a cached one against sentence-transformers."""
    rows = LARGE_ROWS if cached else sizes.sentence_rows
    micro = MINI_ROWS if cached else rows
    given = [f"model.base={sizes.model}", f"data.train={folder / 'shards'}"]
    batch = [f"train.global_batch_rows={rows}", f"train.micro_batch_rows={micro}"]
    rest = [f"data.max_tokens={sizes.sentence_tokens}", "simcse.scale=20.0"]
    arguments = [folder / "sentences.txt", steps, rows, sizes.sentence_tokens]
    if cached:
        script = "sentence_transformers_cached.py"
        every = [sizes.model, *arguments, MINI_ROWS]
        peer = theirs("sentence-transformers", sys.executable, script, *every)
    else:
        script = "llm2vec_simcse.py"
        peer = theirs("llm2vec (HF Trainer)", peers, script, sizes.theirs, *arguments)
    return [ours("tiny_simcse", *given, *batch, *rest, steps=steps), peer]


def flat(folder: Path, *, sizes: Sizes) -> list[Contender]:
    """The same micro-batches; sixteen times as many of them in a global batch."""
    given = [f"model.base={sizes.model}", f"data.train={folder / 'shards'}"]
    given += [f"train.micro_batch_rows={MINI_ROWS}", "data.max_tokens=8"]
    return [
        ours("tiny_simcse", *given, f"train.global_batch_rows={rows}", steps=1, name=f"{rows:,}")
        for rows in (16 * LARGE_ROWS, LARGE_ROWS)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Make the input, run, print tables in Markdown."""
    parser = options(__doc__, peers="llm2vec 0.2.3", needed=True)
    parser.add_argument("--steps", type=int, default=4, help="a run; the first is not counted")
    parser.add_argument("--only", choices=KINDS, action="append")
    parser.add_argument("--model", type=Path, help="a decoder's folder")
    arguments = parser.parse_args(argv)
    kinds = arguments.only or KINDS
    peers, steps = arguments.peers, arguments.steps
    figures = {
        "mntp": ("tokens_per_s", "tokens/s"),
        "recomputed": ("tokens_per_s", "tokens/s"),
        "simcse": ("rows_per_s", "sentences/s"),
        "cached": ("rows_per_s", "sentences/s"),
        "flat": ("rows_per_s", "sentences/s"),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = {
            "sizes": prepare_model(arguments.data, folder, peers=peers, model=arguments.model),
            "peers": peers,
        }
        prepare(arguments.data, folder)
        made = {
            "mntp": mntp(folder, **given, steps=steps, recompute=False),
            "recomputed": mntp(folder, **given, steps=steps, recompute=True),
            "simcse": simcse(folder, **given, steps=steps, cached=False),
            "cached": simcse(folder, **given, steps=2, cached=True),
            "flat": flat(folder, sizes=given["sizes"]),
        }
        for kind in kinds:
            found = compare(made[kind], runs=arguments.runs, warmup=0)
            key, unit = figures[kind]
            print(f"\n{kind}, median of {arguments.runs}; {machine()}\n")
            print(
                table(
                    found,
                    figures={
                        unit: lambda run, key=key: run.said[key],
                        "peak MiB": lambda run: run.peak_mib,
                    },
                )
            )


if __name__ == "__main__":
    main()

"""Reading shuffled blocks of tokens, beside mosaicml-streaming and a training step.

python -m tests.benchmarks.bench_loader --megabytes 40 --runs 5 --peers PYTHON
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks import corpora
from tests.benchmarks.harness import ROOT, Contender, compare, machine, options, table
from toolkit.batching.tokenizer import text_tokenizer
from toolkit.settings.model_source import resolve_model
from toolkit.text.token_shards import TokenFiles, open_tokens

TINY = ROOT / "toolkit" / "quickstart" / "tiny-mistral"
MAX_TOKENS, BATCH = 512, 32


def write_blocks(shards: Path, *, out: Path) -> None:
    """The same blocks as one array for others to store: rows of equal length, padded."""
    tokenizer = text_tokenizer(resolve_model(str(TINY)), max_tokens=MAX_TOKENS)
    opened = open_tokens(TokenFiles(shards=shards, tokenizer=tokenizer, block_tokens=MAX_TOKENS))
    ids_NT = np.zeros((opened.num_blocks, MAX_TOKENS), dtype=np.uint16)
    for number in range(opened.num_blocks):
        ids_T = np.concatenate(opened.block(number))
        ids_NT[number, : len(ids_T)] = ids_T
    np.save(out, ids_NT)


def main(argv: list[str] | None = None) -> None:
    """Make the shards, run, print tables in Markdown."""
    parser = options(__doc__, peers="mosaicml-streaming")
    parser.add_argument("--megabytes", type=float, default=40)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dump = folder / "dump.xml.bz2"
        corpora.write_dump(arguments.data / corpora.DUMP, megabytes=arguments.megabytes, out=dump)
        command = [sys.executable, "data_scripts/shard_wikipedia.py", "--rows-per-shard", "200"]
        command += ["--workers", "2", "--input", str(dump), "--output", str(folder / "shards")]
        command += ["--model", str(TINY), "--max-tokens", str(MAX_TOKENS)]
        subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=True)
        ours = [sys.executable, "-m", "tests.benchmarks.read_blocks", str(folder / "shards")]
        found = [Contender("ours", [*ours, str(MAX_TOKENS), str(BATCH)])]
        if arguments.peers:
            write_blocks(folder / "shards", out=folder / "blocks.npy")
            script = str(Path(__file__).with_name("peers") / "streaming_read.py")
            theirs = [arguments.peers, script, str(folder / "blocks.npy"), str(folder / "mds")]
            found.append(Contender("mosaicml-streaming", [*theirs, str(BATCH)]))
        runs = compare(found, runs=arguments.runs)
    print(f"blocks of {MAX_TOKENS}, batches of {BATCH}, median of {arguments.runs}; {machine()}\n")
    print(
        table(
            runs,
            figures={
                "tokens/s": lambda run: run.said["tokens_per_s"],
                "resume s": lambda run: run.said["resume_s"],
            },
        )
    )
    print()
    print(
        table(
            {"ours": runs["ours"]},
            figures={
                "masked and batched tokens/s": lambda run: run.said["collated_tokens_per_s"],
                "training tokens/s": lambda run: run.said["training_tokens_per_s"],
            },
        )
    )


if __name__ == "__main__":
    main()

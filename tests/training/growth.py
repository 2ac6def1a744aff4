"""Run by a test: peak memory after steps of global batches of growing size, micro-batches alike.

usage: growth.py FOLDER SHARDS LAYERS ROWS ...
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

from transformers import MistralConfig, MistralForCausalLM

import toolkit
from tests.training.gradients import case_recipe, start_rank, trainer_of
from toolkit.parallel import comm

SHIPPED = Path(toolkit.__file__).parent / "quickstart" / "tiny-mistral"
MICRO_BATCH_ROWS = 64


def peak_mib() -> float:
    """Of this process alone: what getrusage tells begins with that of the process it came from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def write_model(base: Path, *, num_layers: int) -> None:
    """The shipped tiny model with so many layers: with few, many rows take few seconds."""
    base.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHIPPED / name, base)
    config = MistralConfig.from_pretrained(SHIPPED, num_hidden_layers=num_layers)
    MistralForCausalLM(config).save_pretrained(base)


def main(folder: str, shards: str, num_layers: str, *sizes: str) -> None:
    """Print a list of peaks in MiB, the last line."""
    base = Path(folder) / "base"
    write_model(base, num_layers=int(num_layers))
    device = start_rank()
    recipe = case_recipe("simcse-cached-short", shards=shards, base=str(base), stage="2")
    trainer = trainer_of(recipe, device=device)
    trainer = dataclasses.replace(trainer, micro_batch_rows=MICRO_BATCH_ROWS)
    peaks = []
    for step, rows in enumerate(map(int, sizes)):
        train = trainer.train.model_copy(update={"global_batch_rows": rows})
        dataclasses.replace(trainer, train=train).do_step(step)
        peaks.append(peak_mib())
    comm.stop()
    print(json.dumps(peaks))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Saving a checkpoint beside DeepSpeed's own: same model, same ranks, ZeRO-3, all weights trained.

    make benchmark-checkpoint
    python -m tests.benchmarks.bench_checkpoint [--runs 5] [--shape 100m]

DeepSpeed's `save_checkpoint` writes pickled partitions; what others can load comes of
`zero_to_fp32`, a process of its own (its weights only, no optimiser). Ours are whole tensors at
once, hashed and committed. Two ranks on this machine; seconds of the save, seconds that training
waits, and by how much the memory of the largest rank rises meanwhile.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import MistralConfig, MistralForCausalLM

from tests.benchmarks.harness import ROOT, Contender, compare, machine, table
from tests.benchmarks.random_model import QUICKSTART, VOCABULARY, save_with_tokenizer
from tests.conftest import torchrun
from toolkit.cluster.topology import detect
from toolkit.cluster.watchdog import Watchdog
from toolkit.parallel import comm
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import MntpRecipe
from toolkit.training import admission, program
from toolkit.training.saver import Saver

WAYS = ("ours", "ours, in the background", "DeepSpeed")
SHAPES = {
    "100m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8}
    | {"num_attention_heads": 12, "num_key_value_heads": 4},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    | {"num_attention_heads": 4, "num_key_value_heads": 2},
}
PAGE = os.sysconf("SC_PAGE_SIZE")


class Memory:
    """The rise of this process's resident memory while entered, in MiB."""

    def __enter__(self) -> "Memory":
        self._before, self.rise, self._done = _resident(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.rise = max(self.rise, (_resident() - self._before) / 2**20)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def work(way: str, *, model: Path, shards: Path, folder: Path) -> None:
    """On a rank: a step, a first save to warm up, a second one that counts."""
    overrides = [f"model.base={model}", f"data.train={shards}", "model.lora=null"]
    overrides += [f"run_dir={folder}/run", f"train.background_save={json.dumps('back' in way)}"]
    overrides += ["train.global_batch_rows=2", "train.keep_checkpoints=1", "data.max_tokens=16"]
    recipe = load_recipe("tiny_mntp", overrides=overrides)
    assert isinstance(recipe, MntpRecipe)
    place = detect(os.environ)
    found = admission.check(recipe, topology=place, environ={})
    device = comm.start(
        rank=place.rank,
        world_size=place.world_size,
        local_rank=place.local_rank,
        address=place.main_address,
        port=place.main_port,
        timeout_s=600,
    )
    trainer = program.build_trainer(
        recipe, admission=found, restored=None, device=device, watchdog=Watchdog.off()
    )
    trainer.do_step(0)
    saver = Saver(recipe, engine=trainer.engine, origin=found.origin)

    def save(step: int) -> Callable[[], object]:
        """Save; what is returned waits until it is whole."""
        if way == "DeepSpeed":
            trainer.engine.save_checkpoint(str(folder / "deepspeed"), tag=str(step))
            return lambda: None
        facts = {"skipped_steps": 0, "held_out_loss": None}
        saver.save(step=step, facts=facts, last=False)
        return lambda: saver.settle(wait=True)

    save(1)()
    comm.barrier()
    with Memory() as memory:
        began = time.perf_counter()
        wait = save(2)
        waited = time.perf_counter() - began
        wait()
        comm.barrier()
        seconds = time.perf_counter() - began
    (rise,) = comm.max_over_ranks(memory.rise, device=device)
    found = {"save_s": seconds, "waits_s": waited, "rise_mib": rise}
    if comm.rank() == 0:
        if way == "DeepSpeed":
            found |= convert(folder / "deepspeed")
        print(json.dumps(found))
    comm.barrier()


def convert(folder: Path) -> dict[str, float]:
    """DeepSpeed's partitions as weights that others load, by its own script."""
    began = time.perf_counter()
    command = [sys.executable, "zero_to_fp32.py", ".", "out", "--safe_serialization", "-t", "2"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return {"then_s": time.perf_counter() - began}


def main(argv: Sequence[str] | None = None) -> None:
    """Make model and shards, save by every way in turn, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--shape", default="100m", choices=SHAPES)
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.work:
        torch.set_num_threads(1)
        shared = arguments.folder
        # The port is the job's own: so is the folder of its checkpoints.
        folder = shared / os.environ["MASTER_PORT"]
        work(arguments.work, model=shared / "model", shards=shared / "shards", folder=folder)
        return
    with tempfile.TemporaryDirectory() as name:
        shared = Path(name)
        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=VOCABULARY, sliding_window=None, **SHAPES[arguments.shape]
        )
        model = MistralForCausalLM(config).to(torch.bfloat16)
        save_with_tokenizer(model, shared / "model")
        shard = [sys.executable, "data_scripts/shard_wikipedia.py", "--output", f"{name}/shards"]
        source = ["--input", str(QUICKSTART / "encyclopedia.xml.bz2")]
        subprocess.run([*shard, *source], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        script = ["-m", "tests.benchmarks.bench_checkpoint", "--folder", name, "--work"]
        contenders = [
            Contender(
                way,
                [*torchrun(2), *script, way],
                prepare=lambda: [shutil.rmtree(old) for old in shared.glob("[0-9]*")],
            )
            for way in WAYS
        ]
        found = compare(contenders, runs=arguments.runs, warmup=0)
        print(f"\n{arguments.shape}, median of {arguments.runs}; {machine()}\n")
        figures = {
            "save, s": lambda run: run.said["save_s"],
            "training waits, s": lambda run: run.said["waits_s"],
            "memory rises, MiB": lambda run: run.said["rise_mib"],
            "until others can load it, s": lambda run: (
                run.said["save_s"] + run.said.get("then_s", 0.0)
            ),
        }
        print(table(found, figures=figures))


if __name__ == "__main__":
    main()

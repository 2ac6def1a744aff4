"""Parts that go through the commands, as a user does: the shipped model, wide layers, host time."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.certify.large import texts_of
from tests.benchmarks.certify.machine import Machine, Notes
from tests.benchmarks.harness import ROOT
from tests.benchmarks.random_model import QUICKSTART, save_with_tokenizer
from toolkit.base.layout import CHECKPOINT_DIR
from toolkit.encoding.encoder import Encoder
from toolkit.runs.records import read_metrics
from toolkit.settings.schema import EncoderSettings

BASE = QUICKSTART / "tiny-mistral"
PAIRS = [
    {"query": f"What is number {n}?", "positive": f"It is river {n}, long.", "negative": "A hill."}
    for n in range(40)
]


class Command:
    """A process of its own, whose output is kept."""

    def __init__(self, machine: Machine, name: str, *arguments: object) -> None:
        self.name, self.log = name, machine.folder / f"{name}.log"
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [machine.python(), *map(str, arguments)], cwd=ROOT, env=environ,
                stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def result(self) -> str:
        """ "ok", or the end of what it printed."""
        code = self.process.wait()
        said = self.log.read_text(errors="replace")[-600:]
        return "ok" if code == 0 else f"exit code {code}: {said}"


def shards(machine: Machine) -> Path:
    """Shards of the shipped encyclopedia."""
    out = machine.folder / "shards"
    source = QUICKSTART / "encyclopedia.xml.bz2"
    script = ["data_scripts/shard_wikipedia.py", "--input", source, "--output", out]
    found = Command(machine, "shards", *script).result()
    if found != "ok":
        raise RuntimeError(found)
    return out


def training(machine: Machine, name: str, recipe: str, *given: object) -> Command:
    """A run of toolkit.train in a directory of that name."""
    place = [f"run_dir={machine.folder / name}", "train.log_every_steps=1"]
    return Command(machine, name, "-m", "toolkit.train", recipe, *place, *given)


def tiny(machine: Machine, notes: Notes) -> None:
    """The shipped model through every door, all at the same time; the tests of GPUs meanwhile."""
    data = shards(machine)
    pairs = machine.folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    made = machine.folder / "pairs"
    Command(
        machine, "pairs", "data_scripts/prepare_pairs.py", "--input", pairs, "--output", made
    ).result()
    bf16 = ["model.dtype=bf16", f"data.train={data}", f"model.base={BASE}"]
    fp32 = [f"data.train={data}", f"model.base={BASE}"]
    stages = (1, 2, 3) if not machine.dry else (2,)
    started = [
        *(
            training(machine, f"mntp_zero{n}", "tiny_mntp", *bf16, f"deepspeed.config=zero{n}")
            for n in stages
        ),
        training(machine, "mntp_fp32", "tiny_mntp", *fp32, f"deepspeed.config={zero0(machine)}"),
        training(machine, "simcse", "tiny_simcse", *bf16, "model.attention_dropout=0"),
        training(
            machine, "supervised", "tiny_supervised", *bf16[:1], *bf16[2:], f"data.train={made}"
        ),
        Command(
            machine, "encode", "-m", "toolkit.encode", "tiny_embed", f"encoder.model={BASE}",
            f"corpus.input={data}", f"output_dir={machine.folder / 'embedded'}",
        ),
    ]  # fmt: skip
    steps = ["train.steps=12", "train.save_every_steps=3", "deepspeed.config=zero2", *bf16]
    whole = training(machine, "uninterrupted", "tiny_mntp", *steps)
    tests = gpu_tests(machine)
    notes.add(killed_and_resumed=killed(machine, steps))
    for command in [*started, whole]:
        notes.add(**{command.name: command.result()})
    losses = [
        read_metrics(machine.folder / name)[-1]["loss"] for name in ("uninterrupted", "killed")
    ]
    notes.add(resumed_loss_differs=abs(losses[0] - losses[1]))
    notes.add(**beside_cpu(machine))
    if tests:
        notes.add(pytest_gpu=tests.result())


def zero0(machine: Machine) -> Path:
    """A layout of stage 0, which no recipe has."""
    path = machine.folder / "zero0.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 0}}))
    return path


def killed(machine: Machine, steps: Sequence[str]) -> str:
    """A run that is killed once a checkpoint is there, and then goes on."""
    first = training(machine, "killed", "tiny_mntp", *steps)
    place = machine.folder / "killed" / CHECKPOINT_DIR
    while first.process.poll() is None and not list(place.glob("*/COMMITTED")):
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        first.process.send_signal(signal.SIGKILL)
    if first.process.wait() == 0:
        return "ended before it was killed"
    return training(machine, "killed", "tiny_mntp", *steps).result()


def gpu_tests(machine: Machine) -> Command | None:
    """The tests that need a GPU, of all files that have one."""
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    if machine.dry:
        return None  # all of them are skipped, which their own test says
    return Command(machine, "pytest", "-m", "pytest", "-m", "gpu", "-q", *files)


def beside_cpu(machine: Machine) -> dict[str, float]:
    """The least cosine of a text's vector here, in bf16, to that of a CPU in fp32, and to that of
    padded texts here."""
    texts = texts_of(machine.sized(64, 8))
    places = {"cosine_to_cpu": ("cpu", "fp32", "packed")}
    places["cosine_to_padded"] = (machine.device.type, "bf16", "sdpa")

    def vectors_of(device: str, dtype: Any, attention: Any) -> Any:
        settings = EncoderSettings(
            model=str(BASE), dtype=dtype, attention=attention, max_tokens=128
        )
        encoder = Encoder(settings, device=torch.device(device))
        return np.asarray(encoder.encode(texts, normalize_embeddings=True), dtype=np.float64)

    ours = vectors_of(machine.device.type, "bf16", "packed")
    return {
        name: float((ours * vectors_of(*place)).sum(axis=1).min()) for name, place in places.items()
    }


def model_on_disk(machine: Machine, **sizes: int) -> Path:
    """A model with random weights and the shipped tokenizer, in a folder."""
    folder = machine.folder / "model"
    config = type(machine.config).from_dict({**machine.config.to_dict(), **sizes})
    config._attn_implementation = "sdpa"
    save_with_tokenizer(machine.drawn(head=True, config=config), folder)
    machine.fresh_memory()
    return folder


def wide(machine: Machine, notes: Notes) -> None:
    """Two layers as wide as those of 7B, from the disk through the doors and back to it."""
    data, folder = shards(machine), model_on_disk(machine, num_hidden_layers=2)
    made, out = machine.folder / "encoder", machine.folder / "embedded"
    given = ["model.dtype=bf16", f"model.base={folder}", f"data.train={data}"]
    given += ["train.steps=3", "deepspeed.config=zero2", "model.lora.rank=16"]
    embedding = [f"encoder.model={made}", f"corpus.input={data}", f"output_dir={out}"]
    for name, *arguments in (
        ("train", "tiny_mntp", f"run_dir={machine.folder / 'run'}", *given),
        ("export", machine.folder / "run", made),
        ("encode", "tiny_embed", "encoder.dtype=bf16", *embedding),
        ("verify", machine.folder / "run", made, out),
    ):
        began = time.perf_counter()
        command = Command(machine, name, "-m", f"toolkit.{name}", *arguments)
        notes.add(**{name: command.result(), f"{name}_s": time.perf_counter() - began})


def host(machine: Machine, notes: Notes) -> None:
    """The host's time for a step of 32 narrow layers, on which the device has next to no work."""
    layers = machine.sized(32, 2)
    data = shards(machine)
    folder = model_on_disk(
        machine, num_hidden_layers=layers, hidden_size=64, intermediate_size=128,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    given = ["model.dtype=bf16", f"model.base={folder}", f"data.train={data}"]
    given += ["train.micro_batch_rows=8", f"train.steps={machine.sized(12, 2)}"]
    for layout in ("zero2", "zero3"):
        # One after another: they share the processor, whose time is measured.
        command = training(machine, layout, "tiny_mntp", *given, f"deepspeed.config={layout}")
        notes.add(**{layout: command.result()})
        rows = read_metrics(machine.folder / layout)
        seconds = statistics.median(row["seconds"] for row in rows[len(rows) // 2 :])
        notes.add(**{f"{layout}_ms_per_layer": 1000 * seconds / layers})

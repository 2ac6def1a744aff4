"""Parts with weights of 7B that are drawn on the device: encoding, and steps of MNTP."""

import bz2
import concurrent.futures
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch

from tests.benchmarks.certify.machine import Machine, Notes
from tests.benchmarks.random_model import QUICKSTART
from toolkit.cluster.topology import detect
from toolkit.encoding import encoder as encoders
from toolkit.encoding.encoder import Encoder
from toolkit.model.backbone import add_lora, checkpoint_activations
from toolkit.model.fp8 import has_fp8, quantize
from toolkit.model.fused import fuse_lora, fuse_rope, fuse_swiglu, has_liger
from toolkit.model.losses import Kernel, masked_token_nll
from toolkit.model.norms import fuse_norms
from toolkit.model.plain_path import nearness
from toolkit.parallel import zero
from toolkit.runs.estimate import flops, peak_of
from toolkit.runs.shapes import read_shape
from toolkit.settings.layouts import read_layout
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EncoderSettings, TrainingRecipe
from toolkit.training.admission import join

GPU = torch.device("cuda")  # only the name: a dry run fuses what a GPU would


def steps() -> dict[str, Callable[[Any], object]]:
    """Fusions, each on top of those before it."""
    found: dict[str, Callable[[Any], object]] = {
        "plain": lambda _model: None,
        "rms_norm": lambda model: fuse_norms(model, device=GPU),
        "lora": fuse_lora,
    }
    if has_liger():
        found["all"] = lambda model: (fuse_swiglu(model), fuse_rope(model))
    return found


def texts_of(number: int) -> list[str]:
    """Texts of the shipped encyclopedia, whole sentences one after another. The lengths are those
    of web passages: the logarithm is normal, with a median of 120 words, and at most 380."""
    with bz2.open(QUICKSTART / "encyclopedia.xml.bz2", "rt", encoding="utf-8") as lines:
        pages = re.sub(r"<[^>]*>|[\[\]'{}|=]", " ", lines.read())
    words = pages.split()
    draw = np.random.default_rng(0)
    lengths = np.minimum(np.exp(draw.normal(np.log(120), 0.8, number)), 380).astype(int) + 1
    starts = draw.integers(0, len(words) - 400, number)
    return [" ".join(words[a : a + n]) for a, n in zip(starts, lengths, strict=True)]


def weights(machine: Machine, notes: Notes) -> None:
    """All weights drawn on the device."""
    machine.fresh_memory()
    began = time.perf_counter()
    model = machine.drawn(head=True)
    machine.wait()
    notes.add(seconds=time.perf_counter() - began, gib=machine.peak_gib())
    notes.add(parameters=sum(part.numel() for part in model.parameters()))


def encode(machine: Machine, notes: Notes) -> None:
    """From texts to vectors on the host, tokenising included, with more and more fused."""
    settings = EncoderSettings(
        model=str(QUICKSTART / "tiny-mistral"), dtype=machine.sized("bf16", "fp32"), max_tokens=512
    )
    # Nothing is fused by itself: positions would be, of all models of this process.
    with mock.patch.object(encoders, "fuse", return_value={}):
        encoder = Encoder(settings, device=machine.device)
    encoder._model = machine.drawn(head=False).to(next(encoder._model.parameters()).dtype).eval()
    encoder.width = machine.config.hidden_size
    texts = texts_of(machine.sized(8000, 40))
    part = machine.sized(1000, 10)
    pieces = [texts[first : first + part] for first in range(0, len(texts), part)]
    encoder.vectors_of(pieces[0])  # compiles what must be compiled
    for name, fusion in steps().items():
        if name == "lora":
            continue
        fusion(encoder._model)
        encoder.vectors_of(pieces[0][: part // 4])
        machine.fresh_memory()
        rate, seen = encoded(encoder, pieces, seconds=machine.sized(13.0, 1.0))
        notes.add(**{f"{name}_tokens_per_s": rate, f"{name}_texts": seen})
        notes.add(**{f"{name}_gib": machine.peak_gib()})
    prepared = encoder.prepare(pieces[1])
    notes.add(idle=machine.idle_share(lambda: encoder.embed(prepared)))
    if machine.dry or has_fp8(machine.device):
        encoder._model.to(torch.bfloat16)
        before = encoder.vectors_of(pieces[0][:100])
        quantize(encoder._model.requires_grad_(False))
        cosine, _ = nearness(encoder.vectors_of(pieces[0][:100]), before)
        notes.add(fp8_cosine=float(cosine.min()))
        machine.fresh_memory()
        rate, seen = encoded(encoder, pieces, seconds=machine.sized(13.0, 1.0))
        notes.add(fp8_tokens_per_s=rate, fp8_texts=seen, fp8_gib=machine.peak_gib())


def encoded(encoder: Encoder, pieces: list[list[str]], *, seconds: float) -> tuple[float, int]:
    """Tokens a second, and how many texts in that time; the next piece is tokenised meanwhile."""
    tokens = texts = 0
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        began = time.perf_counter()
        coming = pool.submit(encoder.prepare, pieces[0])
        for following in [*pieces[1:], []]:
            prepared = coming.result()
            coming = pool.submit(encoder.prepare, following)
            encoder.embed(prepared)
            tokens += sum(batch.num_tokens for batch in prepared.batches)
            texts += prepared.num_rows
            if time.perf_counter() - began > seconds:
                break
        taken = time.perf_counter() - began
    return tokens / taken, texts


def engine_of(model: Any, *, machine: Machine, micro_batches: int = 1) -> zero.Engine:
    """The engine that trains adapters under ZeRO-2; its learning rate is zero, so that all steps
    start from the same weights."""
    settings = zero.EngineSettings(
        layout=read_layout("zero2"), micro_batch_rows=1, accumulation=micro_batches, world_size=1,
        ranks_per_node=1, clip_norm=1.0, bf16=True,
    )  # fmt: skip
    engine = zero.start_engine(model, settings=settings, lr=0.0, weight_decay=0.0)
    engine.train()
    return engine


def adapted(machine: Machine, *, head: bool) -> Any:
    """A drawn model with the adapters of the recipe, whose B is not zero."""
    recipe = recipe_of("mntp_mistral_7b")
    assert recipe.model.lora
    model = add_lora(machine.drawn(head=head), lora=recipe.model.lora)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.01)
    return model


def recipe_of(name: str, **changes: Any) -> TrainingRecipe:
    """A recipe with some keys changed."""
    given = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    recipe = load_recipe(name, overrides=given)
    assert isinstance(recipe, TrainingRecipe)
    return recipe


def mntp(machine: Machine, notes: Notes) -> None:
    """Steps of MNTP with LoRA by the engine: at 4k tokens with more and more fused, and then with
    all of it at other sizes."""
    join(detect(os.environ), timeout_s=60)
    model = adapted(machine, head=True)
    engine = engine_of(model, machine=machine)
    length = machine.sized(512, 16)
    sizes = machine.sized({"4k": 8, "8k": 16}, {"4k": 2, "8k": 4})
    for name, fusion in steps().items():
        fusion(model)
        step(engine, machine, notes, name=f"4k_{name}", rows=sizes["4k"], length=length)
    if has_liger() and machine.on_gpu:
        step(
            engine, machine, notes, name="4k_liger_loss", rows=sizes["4k"], length=length,
            kernel="liger",
        )  # fmt: skip
    step(engine, machine, notes, name="8k", rows=sizes["8k"], length=length)
    checkpoint_activations(model)
    for name, rows in (("8k", sizes["8k"]), ("16k", 2 * sizes["8k"])):
        step(engine, machine, notes, name=f"{name}_recomputed", rows=rows, length=length)
    if machine.dry or has_fp8(machine.device):
        quantize(model)
        rows = 2 * sizes["8k"]
        step(engine, machine, notes, name="16k_fp8_recomputed", rows=rows, length=length)


def step(
    engine: zero.Engine, machine: Machine, notes: Notes, *, name: str, rows: int, length: int,
    kernel: Kernel = "torch",
) -> None:  # fmt: skip
    """Time a step of so many rows, and note tokens/s, MFU, HFU and the most memory."""
    batch = machine.batch(rows=rows, length=length)
    tokens = rows * length
    chosen_1T = torch.zeros(1, tokens, dtype=torch.bool, device=machine.device)
    chosen_1T[0, ::5] = True
    target_M = batch["input_ids"][chosen_1T]

    def work() -> None:
        output = engine(**batch, logits_to_keep=chosen_1T)
        loss, _ = masked_token_nll(output.logits, target_M=target_M, kernel=kernel)
        zero.backward(engine, loss / len(target_M), is_last=True)
        zero.step(engine)

    machine.fresh_memory()
    with machine.room(notes, f"{name}_tokens_per_s"):
        taken = machine.seconds(work, runs=machine.sized(5, 1), warmup=machine.sized(2, 0))
        notes.add(**{f"{name}_tokens_per_s": tokens / taken, f"{name}_gib": machine.peak_gib()})
        recipe = recipe_of(
            "mntp_mistral_7b", mntp__mask_probability=0.2,
            model__activation_checkpointing="recomputed" in name,
        )  # fmt: skip
        used = utilisation(machine, recipe=recipe, rate=tokens / taken)
        notes.add(**{f"{name}_{key}": value for key, value in used.items()})


def utilisation(machine: Machine, *, recipe: TrainingRecipe, rate: float) -> Mapping[str, float]:
    """MFU and HFU at a rate of tokens per second, for a GPU of the table."""
    peak = peak_of(machine.facts()["device"])
    if not peak:
        return {}
    shape = read_shape(machine.config.to_dict())
    model, hardware = flops(shape, recipe, attended=0.0, cached=False)
    return {"mfu": model * rate / peak, "hfu": hardware * rate / peak}

"""Parts that need no model: versions, packed attention beside fp64, what large operations reach."""

import importlib.metadata
import itertools
import os
import shutil
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.certify.machine import Machine, Notes, worst
from toolkit.model import attention, attention_kernels

NAMES = ("torch", "transformers", "deepspeed", "peft", "liger-kernel", "triton", "safetensors")


def versions(machine: Machine, notes: Notes) -> None:
    """What is installed, and what torch's kernel for packed attention takes."""
    notes.add(**machine.facts(), python=sys.version.split()[0], processors=os.cpu_count())
    for name in NAMES:
        try:
            notes.add(**{name: importlib.metadata.version(name)})
        except importlib.metadata.PackageNotFoundError:
            notes.add(**{name: "not installed"})
    notes.add(cuda=str(torch.version.cuda), varlen=sorted(attention_kernels.varlen_parameters()))
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
        notes.add(driver=done.stdout.strip())
    attention_kernels.check_torch(attention="packed", dtype=torch.bfloat16, on_gpu=machine.on_gpu)


def packed_attention(machine: Machine, notes: Notes) -> None:
    """Packed attention in bf16, forward and backward, beside fp64 of each row by itself."""
    lengths = machine.sized((1, 7, 512, 4096), (1, 7, 33))
    heads, keys = machine.sized((32, 8), (4, 2))
    found: dict[str, float] = {}
    for width, window, causal in itertools.product(
        machine.sized((64, 128, 256), (16,)), (None, machine.sized(256, 4)), (False, True)
    ):
        case = Attention(machine, lengths, heads, keys, width, window=window, causal=causal)
        try:
            errors = case.errors()
        except RuntimeError as error:  # of a width that the kernel does not take; the others go on
            notes.add(error=f"width {width}, window {window}, causal {causal}: {error}"[:600])
            continue
        found = {name: max(found.get(name, 0.0), error) for name, error in errors.items()}
        notes.add(**found, cases=notes.found.get("cases", 0) + 1)


class Attention:
    """Rows of some lengths, their gradient, and one way to attend."""

    def __init__(
        self, machine: Machine, lengths: tuple[int, ...], heads: int, keys: int, width: int,
        *, window: int | None, causal: bool,
    ) -> None:  # fmt: skip
        generator = torch.Generator(machine.device).manual_seed(1)
        place: dict[str, Any] = {"device": machine.device, "generator": generator}
        total = sum(lengths)
        self.parts = [
            torch.randn(1, count, total, width, dtype=torch.bfloat16, **place)
            for count in (heads, keys, keys)
        ]
        self.above = torch.randn(1, total, heads, width, dtype=torch.bfloat16, **place)
        self.bounds = (0, *itertools.accumulate(lengths))
        self.window, self.causal = window, causal

    def run(self, rows: slice = slice(None)) -> list[Tensor]:
        """Output and gradients of some rows, by the kernel."""
        bounds = [bound - self.bounds[:-1][rows][0] for bound in self.bounds[:-1][rows]]
        first, last = self.bounds[:-1][rows][0], self.bounds[1:][rows][-1]
        bounds.append(last - first)
        given = [part[:, :, first:last].clone().requires_grad_() for part in self.parts]
        bound_S = torch.tensor(bounds, dtype=torch.int32, device=given[0].device)
        out, _ = attention.packed_attention(
            nn.Module(), *given, cu_seq_lens_q=bound_S, row_bounds=tuple(bounds),
            max_length_q=max(b - a for a, b in itertools.pairwise(bounds)),
            is_causal=self.causal, sliding_window=self.window,
        )  # fmt: skip
        out.backward(self.above[:, first:last])
        return [
            out.detach().transpose(1, 2),
            *(part.grad for part in given if part.grad is not None),
        ]

    def exact(self, row: int) -> list[Tensor]:
        """The same of one row in fp64, by the definition."""
        first, last = self.bounds[row], self.bounds[row + 1]
        given = [part[:, :, first:last].double().requires_grad_() for part in self.parts]
        query, key, value = given
        times = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(times, dim=1) for part in (key, value))
        scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        place = torch.arange(last - first, device=query.device)
        back = place[:, None] - place[None]
        hidden = torch.zeros_like(back, dtype=torch.bool)
        if self.causal:
            hidden |= back < 0
        if self.window is not None:
            hidden |= back >= self.window if self.causal else back.abs() > self.window
        out = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ value
        out.backward(self.above[:, first:last].double().transpose(1, 2))
        return [out.detach(), *(part.grad for part in given if part.grad is not None)]

    def errors(self) -> dict[str, float]:
        """Largest differences: from fp64, of the last row alone, of two runs."""
        found, again = self.run(), self.run()
        alone = self.run(slice(len(self.bounds) - 2, None))
        whole = []
        for row in range(len(self.bounds) - 1):
            whole.append(self.exact(row))
        exact = [torch.cat(parts, dim=2) for parts in zip(*whole, strict=True)]
        first = self.bounds[-2]
        return {
            "forward": worst(found[0], exact[0]),
            "backward": max(map(worst, found[1:], exact[1:])),
            "alone": worst(found[0][:, :, first:], alone[0]),
            "two_runs": worst(again[0], found[0]),
            "two_runs_backward": max(map(worst, again[1:], found[1:])),
        }


def bandwidth(machine: Machine, notes: Notes) -> None:
    """Bytes/s of a large copy and FLOP/s of a layer's products, from idle clocks and after half a
    second of work."""
    numbers = machine.sized(2**29, 2**16)
    source = torch.zeros(numbers, dtype=torch.bfloat16, device=machine.device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()

    def copy() -> None:
        target.copy_(source)

    machine.seconds(copy, runs=1)
    time.sleep(machine.sized(2.0, 0.0))
    notes.add(copy_cold=moved / machine.seconds(copy, runs=1, warmup=0))
    notes.add(copy=moved / machine.seconds(copy, runs=10))
    config, tokens = machine.config, machine.sized(16384, 64)
    width, inner = config.hidden_size, config.intermediate_size
    for name, rows, columns in (
        ("q_proj", width, width), ("gate_proj", width, inner), ("down_proj", inner, width),
    ):  # fmt: skip
        weight = torch.randn(columns, rows, dtype=torch.bfloat16, device=machine.device)
        input = torch.randn(tokens, rows, dtype=torch.bfloat16, device=machine.device)

        def product(input: Tensor = input, weight: Tensor = weight) -> None:
            torch.nn.functional.linear(input, weight)

        flops = 2.0 * tokens * rows * columns
        product()
        time.sleep(machine.sized(1.0, 0.0))
        notes.add(**{f"{name}_cold": flops / machine.seconds(product, runs=1, warmup=0)})
        ends = time.perf_counter() + machine.sized(0.5, 0.0)
        while time.perf_counter() < ends:
            product()
            machine.wait()
        notes.add(**{name: flops / machine.seconds(product, runs=20)})

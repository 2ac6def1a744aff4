"""A GPU's clock and memory, or a CPU in its place. The only module of this package that calls CUDA.

In the place of a GPU a CPU gives every result; its times and its memory mean nothing.
"""

import contextlib
import gc
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig

from tests.benchmarks.random_model import VOCABULARY
from tests.benchmarks.roofline import config_of
from toolkit.base.files import write_atomic
from toolkit.model.attention import register

GIB = 2**30


class Notes:
    """What a part has found. Each figure is on the disk as soon as it is known, so that what a part
    has measured until it is killed is kept."""

    def __init__(self, path: Path) -> None:
        self._path, self.found = path, dict[str, Any]()

    def add(self, **figures: Any) -> None:
        """Keep some figures."""
        self.found.update(figures)
        write_atomic(self._path, json.dumps(self.found).encode())


class Machine:
    """The device at hand; `dry`: tiny shapes, on a CPU."""

    def __init__(self, *, dry: bool, folder: Path) -> None:
        self.dry, self.folder = dry, folder
        if not dry and not torch.cuda.is_available():
            raise RuntimeError("torch sees no GPU here; --dry tries all parts on a CPU")
        self.device = torch.device("cpu" if dry else "cuda")
        self.on_gpu = not dry
        self.config = config_of("tiny" if dry else "mistral-7b")
        self.config.vocab_size = VOCABULARY

    def sized(self, real: Any, tiny: Any) -> Any:
        """`real`, or `tiny` on a CPU."""
        return tiny if self.dry else real

    def wait(self) -> None:
        """Wait until the device has done all that is queued."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], *, runs: int = 5, warmup: int = 2) -> float:
        """The median time of `work`, device and host together."""
        taken = []
        for number in range(warmup + runs):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            if number >= warmup:
                taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def fresh_memory(self) -> None:
        """Forget the most memory that was in use so far."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float:
        """The most memory that was in use since then; on a CPU of the whole process."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated() / GIB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB

    def facts(self) -> dict[str, Any]:
        """What the device is."""
        if not self.on_gpu:
            return {"device": "a CPU in the place of a GPU", "memory_gib": 0.0, "capability": ""}
        found = torch.cuda.get_device_properties(0)
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        memory_gib = found.total_memory / GIB
        return {"device": found.name, "memory_gib": memory_gib, "capability": capability}

    @contextlib.contextmanager
    def room(self, notes: Notes, key: str) -> Any:
        """Note it where the device has too little memory, and go on."""
        try:
            yield
        except torch.OutOfMemoryError:
            notes.add(**{key: "out of memory"})
            self.fresh_memory()

    def idle_share(self, work: Callable[[], object]) -> float:
        """The share of the time from the first to the last of its kernels in which none runs."""
        from torch.profiler import ProfilerActivity, profile

        # Only one kind: that of the host would slow the host down.
        kind = ProfilerActivity.CUDA if self.on_gpu else ProfilerActivity.CPU
        with profile(activities=[kind]) as profiled:
            work()
            self.wait()
        wanted = torch.autograd.DeviceType.CUDA if self.on_gpu else torch.autograd.DeviceType.CPU
        found = [
            (event.time_range.start, event.time_range.end)
            for event in profiled.events() or ()
            if event.device_type == wanted
        ]
        if not found:
            raise RuntimeError("the profiler saw no kernel")
        return gaps(found)

    def drawn(self, *, head: bool, config: PretrainedConfig | None = None) -> Any:
        """A model with random weights in bf16, made on the device: nothing is read from a disk."""
        register()
        torch.manual_seed(0)
        factory = AutoModelForCausalLM if head else AutoModel
        with torch.device(self.device):
            model = factory.from_config(config or self.config, dtype=torch.bfloat16)
        return model.to(self.device)

    def batch(self, *, rows: int, length: int) -> dict[str, Any]:
        """The arguments of a forward pass over rows of random tokens."""
        from toolkit.model.attention import packed_arguments

        tokens = rows * length
        bounds = tuple(range(0, tokens + 1, length))
        place = {"device": self.device}
        return packed_arguments(
            torch.randint(self.config.vocab_size, (1, tokens), **place),
            position_BT=torch.arange(length, **place).repeat(rows)[None],
            bound_S=torch.tensor(bounds, dtype=torch.int32, **place),
            bounds=bounds,
            max_length=length,
        )

    def python(self) -> str:
        """The interpreter of other processes; those of a dry run are forks, which cost less."""
        if self.dry:
            from tests.forking.start import forked_python

            return os.environ.get("CERTIFY_PYTHON") or forked_python()
        return sys.executable


def gaps(intervals: Sequence[tuple[float, float]]) -> float:
    """The share of the whole span that none of the intervals, at least one, covers; they may
    overlap."""
    ordered = sorted(intervals)
    start, end = ordered[0]
    idle = 0.0
    for begin, stop in ordered[1:]:
        idle += max(0.0, begin - end)
        end = max(end, stop)
    return idle / max(end - start, 1e-9)


def worst(found: Tensor, exact: Tensor) -> float:
    """The largest difference, in parts of the largest exact value."""
    return float((found.double() - exact.double()).abs().max() / exact.double().abs().max())

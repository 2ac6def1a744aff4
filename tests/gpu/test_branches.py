"""The lines of the toolkit that ask whether there is a GPU, and what reaches each of them on one.

A new line fails here until it is listed with a test of a GPU (mark gpu), or with a part of `make
certify-gpu`, that runs what only a GPU runs.
"""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.benchmarks.certify.parts import PARTS
from tests.conftest import ROOT

ASKS = re.compile(r"\bis_cuda\b|[\"',]cuda[\"':]|\btorch\.cuda\.")
SHAPES = "tests/gpu/test_real_shapes.py"
ENCODER = f"{SHAPES}::test_an_encoder_here_and_on_a_cpu"
FUSED = f"{SHAPES}::test_a_fused_model_is_the_plain_one"
IN_8_BITS = f"{SHAPES}::test_products_in_8_bits"
DEVICE = f"{SHAPES}::test_the_device_is_found_and_multiplies"
COPIED = (
    "tests/model/test_copied_out.py::test_on_a_gpu_the_copy_is_pinned_and_little_memory_is_held"
)
# Every run of toolkit.train passes them: admission, preflight, the record of its start, metrics.
TRAINED = "certify: doors"
REACHED: dict[str, dict[str, str]] = {
    "encoding/encoder.py": {
        'default = GPU_BATCH_TOKENS if self.device.type == "cuda" else CPU_BATCH_TOKENS': ENCODER,
        'if self.device.type == "cuda":': ENCODER,
        'if self.device.type != "cuda" or len(texts) <= PIECE_TEXTS:': ENCODER,
        'check_kernels(settings.kernels, on_gpu=self.device.type == "cuda", '
        'key="encoder.kernels")': ENCODER,
    },
    "model/attention.py": {
        "on_gpu=query.is_cuda,": f"{SHAPES}::test_packed_attention_at_real_shapes",
    },
    "model/attention_kernels.py": {
        "return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= AMPERE": (
            f"{SHAPES}::test_packed_attention_at_real_shapes"
        ),
    },
    "model/backbone.py": {
        "check_torch(attention=attention, dtype=DTYPES[dtype], on_gpu=torch.cuda.is_available())": (
            ENCODER
        ),
    },
    "model/copied_out.py": {
        "copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]": COPIED,
        "copied.record(torch.cuda.current_stream(result.device))": COPIED,
    },
    "model/fp8.py": {
        'return device.type == "cuda" and torch.cuda.get_device_capability(device) >= HOPPER': (
            IN_8_BITS
        ),
        'return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"': (
            IN_8_BITS
        ),
        "make = _one_kernel() if input_NI.is_cuda else quantized": IN_8_BITS,
    },
    "model/fused.py": {
        'if device.type != "cuda":': FUSED,
        "return tensor.is_cuda": FUSED,
    },
    "model/norms.py": {'if device.type != "cuda":': FUSED},
    "model/precision.py": {
        'if device.type == "cuda":': ENCODER,
        "return torch.cuda.get_device_capability(device) >= AMPERE": ENCODER,
        'if dtype == "fp32" and device.type == "cuda" and attention == PACKED and '
        "has_bf16(device):": ENCODER,
        'line = remark(config, dtype=DTYPES[dtype], on_gpu=device.type == "cuda")': ENCODER,
    },
    "parallel/comm.py": {
        'on_gpu = device.type == "cuda"': TRAINED,
        "torch.cuda.set_device(device)": TRAINED,
        '"cpu:gloo,cuda:nccl" if on_gpu else "gloo",': TRAINED,
        "count = torch.cuda.device_count()": DEVICE,
        'return torch.device("cuda", 0)  # each rank sees its own GPU only, or there is one rank': (
            DEVICE
        ),
        # Of a node with more GPUs than one; tests/training/test_devices.py has it without any.
        'return torch.device("cuda", local_rank)': DEVICE,
    },
    "parallel/zero.py": {"if not torch.cuda.is_available():": TRAINED},
    "training/admission.py": {
        "on_gpu=torch.cuda.is_available(),": TRAINED,
        "check_kernels(recipe.model.kernels, on_gpu=torch.cuda.is_available(), "
        'key="model.kernels")': TRAINED,
    },
    "training/preflight.py": {
        'on_gpu = device.type == "cuda"': TRAINED,
        'device=torch.cuda.get_device_name(device) if on_gpu else "cpu",': TRAINED,
        "device_bytes=torch.cuda.get_device_properties(device).total_memory if on_gpu else 0,": (
            TRAINED
        ),
        'size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (384, torch.float32)': (
            DEVICE
        ),
        'if device.type == "cuda":': DEVICE,
        "torch.cuda.synchronize()": DEVICE,
        'size = 2**26 if device.type == "cuda" else 2**20': TRAINED,
        "torch.cuda.synchronize(device)": DEVICE,
    },
    "training/program.py": {'on_gpu=trainer.device.type == "cuda",': TRAINED},
    "training/starts.py": {
        'on_gpu, topology = place.device.type == "cuda", place.topology': TRAINED,
        '"device": torch.cuda.get_device_name(place.device) if on_gpu else "cpu",': TRAINED,
    },
    "training/utilisation.py": {
        'if device.type == "cuda" and recipe.model.dtype == "bf16":': TRAINED,
        "self._peak = peak_of(torch.cuda.get_device_name(device))": TRAINED,
        'if self._device.type == "cuda":': TRAINED,
        "held = torch.cuda.max_memory_allocated(self._device)": TRAINED,
    },
}


def asking(folder: Path) -> dict[str, set[str]]:
    """The lines below a folder that ask, by file."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(folder.rglob("*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if ASKS.search(line):
                found[str(path.relative_to(folder))].add(line.strip())
    return found


def test_every_branch_of_a_gpu_is_reached_by_something_that_is_named() -> None:
    assert asking(ROOT / "toolkit") == {name: set(lines) for name, lines in REACHED.items()}


@pytest.mark.parametrize("reached", sorted({one for by in REACHED.values() for one in by.values()}))
def test_what_is_named_is_there_and_needs_a_gpu(reached: str) -> None:
    kind, _, part = reached.partition(": ")
    if kind == "certify":
        assert part in PARTS
        return
    path, _, name = reached.partition("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    assert "mark.gpu" in text and f"def {name}(" in text


def test_a_new_branch_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text("a = 1\nif tensor.is_cuda:\n    x = torch.cuda.Stream()\n")
    assert asking(tmp_path) == {"new.py": {"if tensor.is_cuda:", "x = torch.cuda.Stream()"}}

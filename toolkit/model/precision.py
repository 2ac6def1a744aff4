"""The number type that an encoder computes in, where `dtype: auto` leaves it to the device.

Knows devices and what they have instructions for. Refuses to know who else works on the same
encoding: `toolkit.encoding.program` settles one type for all workers.
"""

from pathlib import Path

import torch
from transformers import PretrainedConfig

from toolkit.model.attention_kernels import AMPERE, PACKED, remark
from toolkit.model.backbone import DTYPES
from toolkit.settings.model_schema import DType
from toolkit.settings.schema import EncoderDType

CPU_INFO = Path("/proc/cpuinfo")
# The names that Linux gives to instructions that multiply bf16 numbers.
CPU_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16"})


def dtype_for(asked: EncoderDType, *, device: torch.device) -> DType:
    """`asked`; for "auto" bf16 on a device that has instructions for it, otherwise fp32.

    On a GPU, only 16-bit numbers can use flash attention. On a CPU with AVX-512's bf16 the encoder
    was measured 1.6 times as fast as in fp32; without such instructions bf16 is several times
    slower.
    """
    if asked != "auto":
        return asked
    return "bf16" if has_bf16(device) else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16. Where that cannot be known, it has none."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= AMPERE
    return device.type == "cpu" and cpu_has_bf16(CPU_INFO)


def cpu_has_bf16(cpu_info: Path) -> bool:
    """Whether Linux's description of the processors names such an instruction."""
    try:
        lines = cpu_info.read_text(errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not CPU_INSTRUCTIONS.isdisjoint(flags.split())


def remarks(
    dtype: DType, *, device: torch.device, attention: str, config: PretrainedConfig
) -> list[str]:
    """What somebody should know whose encoder is slow because of its number type or its kernel."""
    if dtype == "bf16" and device.type == "cpu" and not has_bf16(device):
        names = " or ".join(sorted(CPU_INSTRUCTIONS))
        return [
            f"dtype=bf16 on a processor without instructions for it ({names}): several times "
            "slower than fp32"
        ]
    if dtype == "fp32" and device.type == "cuda" and attention == PACKED and has_bf16(device):
        return [
            "dtype=fp32 on a GPU: no flash attention, several times slower than bf16, which "
            "dtype=auto takes here"
        ]
    if attention != PACKED:
        return []
    line = remark(config, dtype=DTYPES[dtype], on_gpu=device.type == "cuda")
    return [line] if line else []

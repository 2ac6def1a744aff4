"""What was found, as the table of the benchmarks' README: figures, bars, and whether they are met.

Knows figures. Refuses to measure. A figure that is not there is "not measured"; a part that failed
says why below the table.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

Found = Mapping[str, Mapping[str, Any]]
MISSING = "not measured"


@dataclasses.dataclass(frozen=True)
class Bar:
    """At least or at most so much; of some GPUs other values."""

    value: float
    least: bool = True
    by_gpu: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def of(self, device: str) -> float:
        """The value for a device by its driver's name."""
        named = (value for name, value in self.by_gpu.items() if name in device)
        return next(named, self.value)

    def is_met(self, figure: float, *, device: str) -> bool:
        """Whether a figure meets it."""
        bar = self.of(device)
        return figure >= bar if self.least else figure <= bar


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: a key of a part, how it is written, and its bar."""

    title: str
    part: str
    key: str
    form: Callable[[Any], str]
    bar: Bar | None = None


def count(value: float) -> str:
    """Thousands with commas."""
    return f"{value:,.0f}"


def small(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def share(value: float) -> str:
    """Per cent."""
    return f"{value:.1%}"


def tera(value: float) -> str:
    """Millions of millions."""
    return f"{value / 1e12:.3g}"


def word(value: Any) -> str:
    """Text as it is, its first line."""
    return str(value).splitlines()[0][:80].replace("|", "/") if str(value) else ""


EXACT, SAME = Bar(0.02, least=False), Bar(0.0, least=False)
NEAR = Bar(0.999)
ENCODE = Bar(35_000, by_gpu={"H200": 40_000})
TRAIN = Bar(14_000, by_gpu={"H200": 16_000})
Line = tuple[str, str, Callable[[Any], str], Bar | None]
# By part: title, key, form, bar.
LINES: dict[str, tuple[Line, ...]] = {
    "attention": (
        ("packed attention in bf16, forward, from fp64", "forward", small, EXACT),
        ("gradients, from fp64", "backward", small, EXACT),
        ("a row beside others and alone", "alone", small, EXACT),
        ("two runs, forward", "two_runs", small, SAME),
        ("two runs, gradients", "two_runs_backward", small, EXACT),
    ),
    "bandwidth": (
        ("a large copy, TB/s read and written", "copy", tera, None),
        ("the same from idle clocks", "copy_cold", tera, None),
        ("gate_proj's product, TFLOP/s", "gate_proj", tera, None),
        ("the same from idle clocks", "gate_proj_cold", tera, None),
    ),
    "doors": (
        *(
            (f"tiny model: {key.replace('_', ' ')}", key, word, None)
            for key in (
                *("mntp_zero1", "mntp_zero2", "mntp_zero3", "mntp_fp32", "simcse", "supervised"),
                *("encode", "killed_and_resumed", "pytest_gpu"),
            )
        ),
        ("resumed after a kill: the last loss differs by", "resumed_loss_differs", small, EXACT),
        ("least cosine to the CPU's vectors", "cosine_to_cpu", small, NEAR),
        ("least cosine to padded texts' vectors", "cosine_to_padded", small, NEAR),
    ),
    "weights": (("7B weights drawn on the device, s", "seconds", small, None),),
    "encode": (
        ("encode 7B, text to vectors, plain, tokens/s", "plain_tokens_per_s", count, None),
        ("+ F.rms_norm", "rms_norm_tokens_per_s", count, None),
        ("+ SwiGLU and RoPE", "all_tokens_per_s", count, ENCODE),
        ("device idle within a batch", "idle", share, Bar(0.05, least=False)),
        ("+ products in fp8, tokens/s", "fp8_tokens_per_s", count, None),
        ("its least cosine to bf16, weights drawn", "fp8_cosine", small, NEAR),
    ),
    "mntp": (
        ("MNTP 7B, LoRA, 4,096 tokens, plain, tokens/s", "4k_plain_tokens_per_s", count, None),
        ("+ F.rms_norm", "4k_rms_norm_tokens_per_s", count, None),
        ("+ LoRA as one product", "4k_lora_tokens_per_s", count, None),
        ("+ SwiGLU and RoPE", "4k_all_tokens_per_s", count, TRAIN),
        ("its MFU", "4k_all_mfu", share, None),
        ("its HFU", "4k_all_hfu", share, None),
        ("its GiB at most", "4k_all_gib", small, None),
        ("+ liger's cross-entropy, tokens/s", "4k_liger_loss_tokens_per_s", count, None),
        ("8,192 tokens", "8k_tokens_per_s", count, None),
        ("8,192 tokens, recomputed", "8k_recomputed_tokens_per_s", count, None),
        ("16,384 tokens, recomputed", "16k_recomputed_tokens_per_s", count, None),
        ("+ frozen weights in fp8", "16k_fp8_recomputed_tokens_per_s", count, None),
    ),
    "gradcache": (
        ("GradCache 8 x 128 over 8 times 1 x 128", "price", small, Bar(1.55, least=False)),
        ("its gradient and one batch's, cosine", "gradient_cosine", small, NEAR),
        ("the same, largest difference", "gradient_error", small, None),
        ("two runs of one batch, largest difference", "gradient_error_two_runs", small, None),
        ("states of both passes, with dropout, differ by", "both_passes_differ", small, SAME),
    ),
    "host": (
        ("host, ms per layer and step, zero2", "zero2_ms_per_layer", small, None),
        ("host, ms per layer and step, zero3", "zero3_ms_per_layer", small, None),
    ),
    "wide": tuple(
        (f"7B-wide layers from disk to disk: {key}", key, word, None)
        for key in ("train", "export", "encode", "verify")
    ),
    "roofline": (
        ("roofline over what encode reached", "encode", small, None),
        ("roofline over what MNTP reached", "mntp", small, None),
    ),
}
ROWS = [Row(title, part, *rest) for part, lines in LINES.items() for title, *rest in lines]


def table(found: Found) -> str:
    """The table in Markdown, with what it was measured on and what failed."""
    known = found.get("versions", {})
    device = str(known.get("device", "an unknown device"))
    packages = ("torch", "cuda", "driver", "transformers", "deepspeed", "liger-kernel")
    said = ", ".join(f"{name} {known[name]}" for name in packages if name in known)
    lines = [f"{device}; {said or 'versions unknown'}", ""]
    if "in the place of" in device:
        lines = [f"{lines[0]}. Times and memory mean nothing here.", ""]
    lines += ["| on a GPU | figure | bar | met |", "|---|---:|---:|---|"]
    lines += [line(row, found, device=device) for row in ROWS]
    failed = {name: part["error"] for name, part in found.items() if "error" in part}
    if failed:
        lines += ["", "Failed:", ""]
        lines += [f"- {name}: {word(error)}" for name, error in failed.items()]
    return "\n".join(lines) + "\n"


def line(row: Row, found: Found, *, device: str) -> str:
    """A line of the table."""
    figure = found.get(row.part, {}).get(row.key)
    bar = met = ""
    if row.bar:
        bar = f"{'>=' if row.bar.least else '<='} {row.form(row.bar.of(device))}"
    if figure is None or (isinstance(figure, str) and row.form is not word):
        return f"| {row.title} | {figure or MISSING} | {bar} | |"
    if row.bar:
        met = "yes" if row.bar.is_met(figure, device=device) else "no"
    return f"| {row.title} | {row.form(figure)} | {bar} | {met} |"

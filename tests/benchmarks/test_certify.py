"""`make certify-gpu` without a GPU: every part runs, is killed in time, and says what it lacks."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.benchmarks.certify import __main__ as certify
from tests.benchmarks.certify.machine import Machine, gaps
from tests.benchmarks.certify.parts import PARTS, WHOLE_S, Part
from tests.benchmarks.certify.table import LINES, MISSING, ROWS, table
from tests.conftest import run

# These are cheap; all others run in `test_all_of_it`.
SHORT = ("attention", "gradcache")


def dry(out: Path, *parts: str) -> dict[str, dict[str, object]]:
    """What a dry run of some parts has found."""
    command = [sys.executable, "-m", "tests.benchmarks.certify", "--out", str(out), "--dry"]
    printed = run([*command, "--parts", *parts])
    assert printed.endswith(out.with_suffix(".md").read_text() + "\n")
    found: dict[str, dict[str, object]] = json.loads(out.read_text())
    assert {name: part["error"] for name, part in found.items() if "error" in part} == {}
    return found


def lines_of(out: Path) -> dict[str, list[str]]:
    cells = [line.split("|")[1:-1] for line in out.with_suffix(".md").read_text().splitlines()]
    return {row[0].strip(): [one.strip() for one in row[1:]] for row in cells if len(row) == 4}


def test_a_few_parts_in_ci(tmp_path: Path) -> None:
    """What they find is true on a CPU too, but for times."""
    found = dry(tmp_path / "found.json", *SHORT)
    assert found["attention"]["cases"] == 4
    assert 0 < found["attention"]["forward"] < 0.01  # type: ignore[operator]
    assert 0 < found["attention"]["backward"] < 0.02  # type: ignore[operator]
    assert found["gradcache"]["both_passes_differ"] == 0.0
    assert found["gradcache"]["gradient_cosine"] > 0.9999  # type: ignore[operator]
    lines = lines_of(tmp_path / "found.json")
    assert lines["packed attention in bf16, forward, from fp64"][2] == "yes"
    assert lines["MNTP 7B, LoRA, 4,096 tokens, plain, tokens/s"][0] == MISSING
    # Another call adds to what is there.
    assert dry(tmp_path / "found.json", "bandwidth").keys() > {*SHORT, "bandwidth"}


@pytest.mark.slow
def test_all_of_it(tmp_path: Path) -> None:
    """Every line of the table but those that only a GPU has."""
    found = dry(tmp_path / "found.json", *PARTS)
    missing = {(row.part, row.key) for row in ROWS if row.key not in found[row.part]}
    assert missing == {
        *(("doors", name) for name in ("mntp_zero1", "mntp_zero3", "pytest_gpu")),
        *(("mntp", name) for name in ("4k_all_mfu", "4k_all_hfu", "4k_liger_loss_tokens_per_s")),
    }
    said = {str(found[row.part][row.key]) for row in ROWS if row.part in ("doors", "wide")
            and isinstance(found[row.part].get(row.key), str)}  # fmt: skip
    assert said == {"ok"}
    assert found["doors"]["resumed_loss_differs"] == 0.0  # on a CPU
    assert found["doors"]["cosine_to_cpu"] > 0.999  # type: ignore[operator]


def test_a_part_that_is_late_is_killed_with_all_that_it_started() -> None:
    found = certify.measured("doors", dry=True, left_s=6.0)
    assert found["error"] == "killed after 6 s" and found["wall_s"] < 20
    for _ in range(100):  # forks end a moment after what stands in their place
        left = [
            text for path in Path("/proc").glob("[0-9]*/cmdline")
            if b"certify-doors" in (text := read(path))
        ]  # fmt: skip
        if not left:
            break
        time.sleep(0.1)
    assert left == []
    assert certify.measured("doors", dry=True, left_s=0.5)["error"] == "no time was left"


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it has ended meanwhile


def test_what_is_missing_or_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "versions", Part("not_there", "nothing", 1.0))
    assert certify.child("versions", result=tmp_path / "a", dry=True) == 0
    said = json.loads((tmp_path / "a").read_text())["error"]
    assert "tests.benchmarks.certify.not_there is not installed in" in said
    monkeypatch.setitem(PARTS, "versions", Part("parts", "nothing", 1.0))
    with pytest.raises(AttributeError):
        certify.child("versions", result=tmp_path / "b", dry=True)
    assert "has no attribute 'nothing'" in json.loads((tmp_path / "b").read_text())["error"]
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="--dry tries all parts on a CPU"):
            Machine(dry=False, folder=tmp_path)


def test_all_parts_fit_into_nine_minutes_and_into_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sum(part.seconds for part in PARTS.values()) <= WHOLE_S + 5 == 545
    assert LINES.keys() - {"roofline"} == PARTS.keys() - {"versions"}
    with pytest.raises(SystemExit):
        certify.main(["--help"])
    printed = capsys.readouterr().out
    assert "--dry" in printed and "--child" not in printed


def test_the_time_without_a_kernel() -> None:
    """Kernels overlap, and lie inside of each other."""
    assert gaps([(0, 4), (1, 2), (3, 5), (7, 8), (9, 10)]) == pytest.approx(3 / 10)
    assert gaps([(5, 6), (0, 5)]) == 0.0


@pytest.mark.parametrize(
    ("device", "rate", "met"),
    [
        ("NVIDIA H100 80GB HBM3", 36e3, "yes"),
        ("NVIDIA H200", 36e3, "no"),
        ("NVIDIA H200", 41e3, "yes"),
    ],
)
def test_bars_are_those_of_the_gpu(device: str, rate: float, met: str) -> None:
    found = {
        "versions": {"device": device, "torch": "2.12"},
        "encode": {"all_tokens_per_s": rate, "idle": 0.07},
        "mntp": {"8k_tokens_per_s": "out of memory", "error": "OutOfMemoryError: 80 GiB"},
    }
    text = table(found)
    bar = "40,000" if "H200" in device else "35,000"
    assert f"| + SwiGLU and RoPE | {rate:,.0f} | >= {bar} | {met} |" in text
    assert "| device idle within a batch | 7.0% | <= 5.0% | no |" in text
    assert "| 8,192 tokens | out of memory |  | |" in text
    assert text.startswith(f"{device}; torch 2.12\n") and "- mntp: OutOfMemoryError" in text

"""The bytes of a training step, counted from shapes: what a fused norm must save."""

import pytest

from tests.benchmarks import moved_bytes


def test_a_fused_norm_moves_what_it_must_and_no_copies(capsys: pytest.CaptureFixture[str]) -> None:
    """Two norms per layer: forward reads and writes bf16; backward reads the gradient and the
    input, and writes a gradient. Everything else moves what it moved before."""
    width = moved_bytes.SIZES["tiny"][0]
    before, before_kept = moved_bytes.per_layer(size="tiny", fused=False)
    after, after_kept = moved_bytes.per_layer(size="tiny", fused=True)
    assert after["rms_norm"] == pytest.approx(2 * (5 * 2 * width + 2 * 4), rel=0.01)
    assert sum(after.values()) < sum(before.values()) and after_kept < before_kept
    assert {k for k in before if before[k] != after.get(k)} <= {
        *("_to_copy", "pow", "mean", "add", "rsqrt", "mul", "sum", "div", "expand", "neg"),
    }
    moved_bytes.main(["--shape", "tiny"])
    assert "| F.rms_norm |" in capsys.readouterr().out

"""What becomes of the memory of large tensors on a CPU."""

import subprocess
import sys

PROGRAM = """
import pathlib
import sys

import torch

from toolkit.model.memory import keep_large_blocks


def resident_kib():
    rollup = pathlib.Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:"))


if sys.argv[1] == "kept":
    keep_large_blocks()
before = resident_kib()
tensors = [torch.ones(2**20) for _ in range(32)]  # of 4 MiB
print((resident_kib() - before) // 1024)
del tensors
print((resident_kib() - before) // 1024)
"""


def run(what: str) -> tuple[int, int]:
    """MiB that 128 MiB of tensors take, and what is left of them when they are gone."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what], capture_output=True, text=True, check=True
    )
    there, after = map(int, done.stdout.split())
    return there, after


def test_the_memory_of_large_tensors_is_kept_for_the_next() -> None:
    there, after = run("kept")
    assert 120 <= there <= 160
    assert after >= 100


def test_without_it_the_memory_is_given_back() -> None:
    there, after = run("not")
    assert there >= 120
    assert after <= 40

"""The way of a GPU, without one: which kernel, no waiting for the device, no mixing of devices."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import need, run

HERE = Path(__file__).parent
FLASH, SDPA = "flash attention over rows of any length", "sdpa over groups of rows"
NAMES = ("encoder bf16", "encoder fp32", "mntp", "simcse", "simcse last", "supervised", "graded")
CASES = [f"{name}, {where}" for name in NAMES for where in ("fake cuda", "meta")]
# The masked head selects the states that predict a token: once forward, once backward, for each
# micro-batch.
WAITS = {
    "mntp, fake cuda": ["index.Tensor"] * 2,
    "mntp, meta": ["index.Tensor", "index_put.default"] * 2,
}


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a torch without CUDA lacks for fake CUDA tensors."""
    made = tmp_path_factory.mktemp("guard") / "guard.so"
    if torch.version.cuda is not None:
        return made  # which is not needed
    need(shutil.which("g++") is not None, "g++ is not installed")
    library = Path(torch.__file__).parent
    command = ["g++", "-std=c++20", "-shared", "-fPIC", "-O0", f"-I{library}/include"]
    command += [str(HERE / "fake_cuda.cpp"), "-o", str(made), f"-L{library}/lib", "-lc10"]
    subprocess.run(command, check=True)
    return made


def found_with(fault: str, *, model: Path, guard: Path) -> dict[str, Any]:
    """The result of each case, by a process of its own: the guard stays in a process."""
    command = [sys.executable, str(HERE / "on_fake_cuda.py"), str(model), str(guard), fault]
    found: dict[str, Any] = json.loads(run(command).splitlines()[-1])
    assert sorted(found) == sorted(CASES)
    return found


@pytest.fixture(scope="module")
def found(tiny_model: Path, guard: Path) -> dict[str, Any]:
    return found_with("none", model=tiny_model, guard=guard)


@pytest.mark.parametrize("case", CASES)
def test_it_runs_without_waiting_for_the_device(case: str, found: dict[str, Any]) -> None:
    kernel = SDPA if "fp32" in case else FLASH
    assert found[case] == {"error": "", "waits": WAITS.get(case, []), "kernels": [kernel]}


@pytest.mark.parametrize(
    ("fault", "on_cuda", "on_meta"),
    [
        ("tolist", "DataDependentOutputException", "copied back"),
        ("mixing", "found at least two devices", "device"),
    ],
)
def test_what_a_gpu_would_wait_for_or_refuse_is_found_in_every_case(
    fault: str, on_cuda: str, on_meta: str, tiny_model: Path, guard: Path
) -> None:
    found = found_with(fault, model=tiny_model, guard=guard)
    for case in CASES:
        assert (on_meta if "meta" in case else on_cuda) in found[case]["error"], case

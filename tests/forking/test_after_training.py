"""A process that has trained itself still has its starts forked."""

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import run
from tests.forking.start import SWITCH, forked_python
from toolkit import train


def test_a_start_is_forked_after_a_training_in_this_process(
    shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Libraries change this process's environment when they are imported (`SET_BY_LIBRARIES`)."""
    if os.environ.get(SWITCH) == "1":
        pytest.skip(f"{SWITCH}=1: every start is a real one")
    arguments = [f"data.train={shards}", f"model.base={tiny_model}", f"run_dir={tmp_path}"]
    assert train.main(["tiny_mntp", *arguments, "train.steps=1"]) == 0
    is_forked = [sys.executable, "-c", "import sys; print('deepspeed' in sys.modules)"]
    assert run(is_forked) == "True\n"
    forked_python.cache_clear()  # a server that begins now is as good
    assert run(is_forked) == "True\n"

"""The shipped tiny model with its first two layers of six: what most tests need of a model.

What a step costs here is calls from Python, as many as there are layers. Two have all that tests
look at: a first and a last one, one after another, each with all its weights.
"""

import atexit
import functools
import json
import re
import shutil
import tempfile
from pathlib import Path

from tests.conftest import QUICKSTART

LAYERS = 2


def write_two_layers(folder: Path) -> Path:
    """Write the model, tokenizer and all, to a folder that is not there yet; returns it."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(QUICKSTART / "tiny-mistral", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": LAYERS}))
    weights = {
        name: tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if not (found := re.search(r"\.layers\.(\d+)\.", name)) or int(found[1]) < LAYERS
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@functools.cache
def two_layers() -> Path:
    """The folder of the model, which all tests of this process share."""
    folder = Path(tempfile.mkdtemp(prefix="toolkit-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)  # jobs of the test cluster may read it
    return write_two_layers(folder / "tiny-mistral")

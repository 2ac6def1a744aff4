"""A model with random weights in a folder: it computes as fast as a trained one.

Tokenizer and all other files are those of the shipped model; the weights are made where torch is
told to make them.
"""

import shutil
from pathlib import Path

from transformers import PreTrainedModel

from tests.benchmarks.harness import ROOT

QUICKSTART = ROOT / "toolkit" / "quickstart"
VOCABULARY = 32000  # Mistral's; the shipped tokenizer has fewer


def save_with_tokenizer(model: PreTrainedModel, folder: Path) -> None:
    """Write the model and the shipped tokenizer to a folder that is not there yet."""
    folder.mkdir()
    for path in (QUICKSTART / "tiny-mistral").glob("*"):
        if path.suffix != ".safetensors":
            shutil.copy(path, folder / path.name)
    model.save_pretrained(folder, max_shard_size="4GB")

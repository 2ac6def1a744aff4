"""An encoding of the shipped encyclopedia, and how the tests of this folder make others."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from toolkit import encode
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EmbedRecipe

ALONE: Mapping[str, str] = {}


def embed(output: Path, *overrides: str, environ: Mapping[str, str] = ALONE) -> None:
    """Run the encoding program in this process; 16 tokens a row, for speed."""
    recipe = load_recipe(
        "tiny_embed", overrides=[f"output_dir={output}", "encoder.max_tokens=16", *overrides]
    )
    assert isinstance(recipe, EmbedRecipe)
    encode.run(recipe, environ=environ)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.fixture(scope="session")
def inputs(tiny_model: Path, shards: Path) -> tuple[str, str]:
    """The overrides that name model and corpus."""
    return f"encoder.model={tiny_model}", f"corpus.input={shards}"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, inputs: tuple[str, str]) -> Path:
    """The encyclopedia, embedded by one process without a break. Not to be written to."""
    output = tmp_path_factory.mktemp("encoding") / "whole"
    embed(output, *inputs)
    return output

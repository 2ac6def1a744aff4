"""The exact sbatch text of every recipe of the project, as files that people can read.

After a change that is meant: TOOLKIT_WRITE_GOLDEN=1 python -m pytest tests/test_golden.py, and look
at what git says of it.
"""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import QUICKSTART, ROOT, need
from toolkit import launch
from toolkit.launching.inputs import inputs_of
from toolkit.settings.catalogue import made_of, recipe_names
from toolkit.settings.pipelines import resolve

# Of the recipes that are made for a base of the table, one stands for all.
RECIPES = [name for name in recipe_names() if not made_of(name) or name == "llm2vec_qwen3_8b"]
GOLDEN = Path(__file__).with_name("golden")
SHAPE = ("--cluster", "slurm", "--nodes", "2", "--gpus-per-node", "4")


def make_inputs(recipe: str) -> None:
    """What the launcher takes for shards and models, wherever in this directory the recipe wants
    them."""
    _, _, stages = resolve(recipe, overrides=[])
    for name in stages:
        models, shards = inputs_of(stages, name=name)
        for place in shards:
            Path(place).mkdir(parents=True, exist_ok=True)
            (Path(place) / "COMMITTED").touch()
        for model in models:
            if model.startswith("runs/"):
                shutil.copytree(QUICKSTART / "tiny-mistral", model, dirs_exist_ok=True)


def scripts(recipe: str, *, folder: Path) -> str:
    """What a dry run prints, wherever this is."""
    out = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        make_inputs(recipe)
        assert launch.main(["--recipe", recipe, *SHAPE, "--dry-run"]) == 0
    text = out.getvalue()
    for what, name in ((folder, "HERE"), (sys.executable, "PYTHON"), (ROOT, "ROOT")):
        text = text.replace(str(what), f"/{name}")
    return text


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_these_jobs(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOOLKIT_ENV_SH", raising=False)
    monkeypatch.delenv("TOOLKIT_SITE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no site file of the user's
    found, expected = scripts(recipe, folder=tmp_path), GOLDEN / f"{recipe}.sh"
    if os.environ.get("TOOLKIT_WRITE_GOLDEN") == "1":
        expected.write_text(found)
    assert found == expected.read_text()


def test_no_file_is_left_of_a_recipe_that_went() -> None:
    assert {path.stem for path in GOLDEN.glob("*.sh")} == set(RECIPES)


def test_the_shell_and_its_linter_accept_them() -> None:
    need(shutil.which("shellcheck") is not None, "shellcheck is not installed")
    for path in GOLDEN.glob("*.sh"):
        for script in path.read_text().split("# ---- ")[1:]:
            job = script.partition("\n")[2]
            assert job.startswith("#!/bin/bash")
            subprocess.run(["bash", "-n"], input=job, text=True, check=True)
            # SC1091: the file that is sourced is not at hand.
            subprocess.run(["shellcheck", "-e", "SC1091", "-"], input=job, text=True, check=True)

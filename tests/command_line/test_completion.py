"""What a real bash completes, by argcomplete's own completion function."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, need

ASK = """
eval "$("$PYTHON" -m argcomplete.scripts.activate_global_python_argcomplete --dest=- 2>/dev/null)"
COMP_LINE="$1" COMP_POINT=${#1} COMP_TYPE=9
read -ra COMP_WORDS <<< "$1"
_python_argcomplete_global python 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""
TOOLKIT = ROOT / "toolkit"
# A door is a file, or a folder with a __main__; the quickstart, whose keys nobody types, is none.
FILES = {path.stem: path for path in TOOLKIT.glob("*.py") if path.stem != "__main__"}
FILES |= {path.parent.name: path for path in TOOLKIT.glob("*/__main__.py")}
DOORS = sorted(
    name
    for name, path in FILES.items()
    if "\n    sys.exit(main())" in path.read_text() and name != "quickstart"
)


def complete(line: str, *, folder: Path) -> list[str]:
    """What a tab after `line` offers in a folder."""
    need(importlib.util.find_spec("argcomplete") is not None, "argcomplete is not installed")
    (folder / "bin").mkdir(exist_ok=True)
    python = folder / "bin" / "python"  # argcomplete wants the word python, as people write it
    if not python.exists():
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
    path = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environ = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(path)}
    environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", line],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    return [word.strip() for word in done.stdout.splitlines() if word.strip()]


def test_options_recipes_and_keys(tmp_path: Path) -> None:
    (tmp_path / "tiny_mine.yaml").touch()
    (tmp_path / "tiny_folder").mkdir()
    (tmp_path / "tiny_notes.txt").touch()
    launch = "python -m toolkit.launch"
    assert complete(f"{launch} --array", folder=tmp_path) == ["--array-throttle"]
    recipes = complete(f"{launch} --recipe tiny_", folder=tmp_path)
    assert {"tiny_mntp", "tiny_pipeline", "tiny_mine.yaml", "tiny_folder/"} <= set(recipes)
    assert all(name.startswith("tiny_") for name in recipes) and "tiny_notes.txt" not in recipes
    keys = complete("python -m toolkit.train tiny_mntp train.s", folder=tmp_path)
    assert {"train.steps=", "train.seed="} <= set(keys)
    assert all(key.startswith("train.s") for key in keys)
    keys = complete(f"{launch} --recipe tiny_pipeline mntp.train.st", folder=tmp_path)
    assert "mntp.train.steps=" in keys
    assert complete(f"{launch} tiny_p", folder=tmp_path) == ["tiny_pipeline"]
    keys = complete(f"{launch} tiny_pipeline mntp.train.st", folder=tmp_path)
    assert "mntp.train.steps=" in keys
    recipes = complete("python -m toolkit.encode tiny_", folder=tmp_path)
    assert "tiny_embed" in recipes and "tiny_mntp" not in recipes
    assert complete("python -m toolkit.train absent train.", folder=tmp_path) == []


def test_every_door_answers() -> None:
    for name in DOORS:
        first = FILES[name].read_text().partition("\n")[0]
        assert first == "# PYTHON_ARGCOMPLETE_OK", name
    assert len(DOORS) >= 11


@pytest.mark.parametrize("door", ["status", "plan", "report"])
def test_other_doors_complete_too(door: str, tmp_path: Path) -> None:
    assert complete(f"python -m toolkit.{door} --", folder=tmp_path)

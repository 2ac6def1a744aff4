"""The package as `pip install .` puts it: whole, and every door works from another folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import QUICKSTART, ROOT
from tests.project_files import project_files
from toolkit.__main__ import DOORS
from toolkit.settings.catalogue import made_of, recipe_names


def call(*command: str, cwd: Path, path: Path | None = None, code: int = 0) -> str:
    environ = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    environ |= {"HOME": str(cwd)} | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True)
    assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an installation without the packages that it needs, which are those at hand.

    Neither step needs a network: setuptools is here, and dependencies are not asked for.
    """
    tree, wheels, target = (tmp_path_factory.mktemp(name) for name in ("tree", "wheel", "site"))
    for name in project_files(ROOT):
        if not name.startswith("tests/"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"]
    call(*build, str(wheels), ".", cwd=tree)
    (wheel,) = wheels.glob("*.whl")
    call(*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=tree)
    return target


def test_a_wheel_has_every_file_of_the_package_and_what_stands_beside_it(installed: Path) -> None:
    beside = ("ds_configs/", "slurm/", "data_scripts/")
    wanted = {name for name in project_files(ROOT) if name.startswith("toolkit/")}
    wanted |= {f"toolkit/{name}" for name in project_files(ROOT) if name.startswith(beside)}
    there = {str(path.relative_to(installed)) for path in (installed / "toolkit").rglob("*")}
    missing = {name for name in wanted - there if not name.endswith("README.md")}
    assert missing == set()


def test_every_door_shows_its_help_from_another_folder(installed: Path, tmp_path: Path) -> None:
    code = f"""
import importlib, sys
for door in {[name for name in DOORS if name != "quickstart"]}:
    try:
        importlib.import_module(f"toolkit.{{door}}").main(["--help"])
    except SystemExit as stop:
        assert stop.code == 0
import toolkit
assert toolkit.__file__.startswith({str(installed)!r}), toolkit.__file__
assert "torch" not in sys.modules
"""
    printed = call(sys.executable, "-c", code, cwd=tmp_path, path=installed)
    assert printed.count("usage: python -m toolkit.") == len(DOORS) - 1
    for name in recipe_names():
        stage, base = made_of(name) or ("", "")
        assert (f"{stage}_BASE" in printed and f" {base}" in printed) if base else name in printed


def test_a_dry_run_names_the_scripts_and_layouts_of_the_installation(
    installed: Path, tmp_path: Path
) -> None:
    launch = [sys.executable, "-m", "toolkit.launch", "tiny_pipeline", "--cluster", "slurm"]
    launch += ["--gpus-per-node", "1", "--dry-run"]
    printed = call(*launch, cwd=tmp_path, path=installed)
    assert printed.count(f"source '{installed}/toolkit/slurm/env.sh'\n") == 3
    config = call(*launch[:-1], "--print-config", cwd=tmp_path, path=installed)
    assert f"base: {installed}/toolkit/quickstart/tiny-mistral\n" in config
    assert list(tmp_path.iterdir()) == []


def test_it_encodes_from_another_folder(installed: Path, tmp_path: Path) -> None:
    """The shards come of the installation's own script, the layout that `ready` reads too."""
    script = installed / "toolkit" / "data_scripts" / "shard_wikipedia.py"
    dump = str(QUICKSTART / "encyclopedia.xml.bz2")
    shard = [sys.executable, str(script), "--input", dump, "--limit", "20", "--output", "shards"]
    call(*shard, cwd=tmp_path, path=installed)
    python = [sys.executable, "-m"]
    ready = [*python, "toolkit.ready", "tiny_mntp", "data.train=shards", "run_dir=run"]
    assert call(*ready, cwd=tmp_path, path=installed) == "ready: mntp\n"
    model = f"encoder.model={installed}/toolkit/quickstart/tiny-mistral"
    encode = [*python, "toolkit.encode", "tiny_embed", "corpus.input=shards", "output_dir=ENC"]
    call(*encode, model, cwd=tmp_path, path=installed)
    assert (tmp_path / "ENC" / "manifest.json").is_file()

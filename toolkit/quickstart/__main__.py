"""The quickstart:  python -m toolkit.quickstart [stage.key=value ...]   (make quickstart)

Shards of the shipped encyclopedia, then the pipeline of recipes/quickstart.yaml on this machine,
then a table of the four states and three searches. It uses the same commands as a job on a cluster.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit import launch, search
from toolkit.base.console import say
from toolkit.base.errors import BadInput
from toolkit.command_line.door import guarded
from toolkit.settings.catalogue import shipped
from toolkit.settings.pipeline_schema import PipelineRecipe
from toolkit.settings.pipelines import split_overrides
from toolkit.settings.recipes import load_recipe

FOLDER = Path(__file__).parent
SHARD_SCRIPT = shipped("data_scripts") / "shard_wikipedia.py"
QUERIES = (
    "the force that slows a sliding box down",
    "an animal that builds dams in rivers",
    "a game with a ball and a net",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything anew in runs/quickstart."""
    return guarded(lambda: run(sys.argv[1:] if argv is None else argv))


def run(overrides: Sequence[str]) -> None:
    """Shard, train, embed, evaluate, search. Raises `BadInput` when a part of it fails."""
    recipe = load_recipe("quickstart")
    assert isinstance(recipe, PipelineRecipe)
    run_dir = Path(recipe.run_dir)
    own, _ = split_overrides(overrides)
    if own:
        # run_dir is emptied below: nobody's folder but the quickstart's own may be named here.
        raise BadInput(f"{own[0]}: the quickstart takes stage.key=value only; use toolkit.launch")
    shutil.rmtree(run_dir, ignore_errors=True)
    assert isinstance(recipe.data.train, str)
    make_shards(recipe.data.train)
    arguments = ["--recipe", "quickstart", "--cluster", "local", "--gpus-per-node", "0"]
    _stop_if("the pipeline", launch.main([*arguments, *overrides]))
    say()
    search.run(run_dir / "embeddings", queries=list(QUERIES), settings=search.Settings(top=3))


def make_shards(output: str) -> None:
    """Shards of the shipped encyclopedia. Raises `BadInput` when they cannot be written."""
    dump = str(FOLDER / "encyclopedia.xml.bz2")
    command = [sys.executable, str(SHARD_SCRIPT), "--input", dump, "--output", output]
    _stop_if("shard_wikipedia.py", subprocess.run(command, check=False).returncode)


def _stop_if(what: str, code: int) -> None:
    if code:
        raise BadInput(f"the quickstart stopped at {what}")


if __name__ == "__main__":
    sys.exit(main())

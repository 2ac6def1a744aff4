# PYTHON_ARGCOMPLETE_OK
"""Fetch what jobs need and compute nodes cannot fetch: models, tokenizers and MTEB's data go into
this machine's hub cache, on a login node.

    python -m toolkit.prefetch RECIPE [key=value ...]

Jobs look into the same cache (HF_HOME, on a file system that all nodes share) and never into the
network. RUN_DIR/prefetched.json lists what was fetched.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit.base.console import say
from toolkit.base.errors import BadInput
from toolkit.base.files import is_committed, write_json
from toolkit.base.layout import PREFETCHED_FILE
from toolkit.command_line.completion import answer_shell
from toolkit.command_line.door import Parser, add_recipe, guarded
from toolkit.launching.inputs import inputs_of
from toolkit.settings.catalogue import recipes_text
from toolkit.settings.pipelines import resolve
from toolkit.settings.schema import EvaluateRecipe, StageRecipe
from toolkit.settings.task_schema import Mteb


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.prefetch`."""
    parser = Parser(
        prog="python -m toolkit.prefetch",
        description="Fetch the models that a recipe names into the hub cache, before its jobs are "
        "queued.",
        epilog="examples:\n  python -m toolkit.prefetch llm2vec_mistral_7b run_dir=runs/a\n"
        "  HF_HOME=/shared/hub python -m toolkit.prefetch mntp_llama2_7b\n\n"
        f"{recipes_text()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_recipe(parser)
    answer_shell(parser)
    arguments = parser.parse_intermixed_args(argv)
    return guarded(lambda: prefetch(arguments.recipe, overrides=arguments.overrides))


def prefetch(name: str, *, overrides: Sequence[str]) -> None:
    """Fetch every model that the stages need and none of them writes; then write prefetched.json.

    Raises `BadInput` for a model or data that cannot be fetched, and for shards that do not exist.
    """
    _, run_dir, stages = resolve(name, overrides=overrides)
    needed = [inputs_of(stages, name=stage) for stage in stages]
    models = list(dict.fromkeys(model for models, _ in needed for model in models))
    shards = list(dict.fromkeys(place for _, shards in needed for place in shards))
    for place in shards:
        if not is_committed(Path(place)):
            raise BadInput(f"{place}: no whole shard directory; make it first (data_scripts)")
    # A login node has a network: the hub is asked unless the user says otherwise.
    os.environ.setdefault("HF_HUB_OFFLINE", "0")
    from toolkit.model.adapters import chain_of  # brings torch and the hub's client
    from toolkit.model.weights import base_folder, model_digest

    fetched = {}
    chains = [chain_of(model) for model in models]
    folders = {chain.base.reference: base_folder(chain.base) for chain in chains}
    for chain in chains:
        folders |= zip(chain.names, chain.folders, strict=True)
    for model, folder in folders.items():
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        fetched[model] = {
            "folder": str(folder.absolute()),
            "bytes": size,
            "digest": model_digest(folder),
        }
        say(f"{model}: {size / 1e9:.2f} GB in {folder}")
    tasks = [task for recipe in stages.values() for task in _mteb_data(recipe)]
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / PREFETCHED_FILE, {"models": fetched, "shards": shards, "mteb": tasks})
    say(f"all that {name} needs is here; see {run_dir / PREFETCHED_FILE}")


def _mteb_data(recipe: StageRecipe) -> list[str]:
    """Fetch the data of the MTEB tasks that an evaluation names; returns their names."""
    if not isinstance(recipe, EvaluateRecipe) or recipe.mteb == Mteb():
        return []
    from toolkit.evaluation.mteb_tasks import load_data, paths_of, tasks_of

    tasks = tasks_of(recipe.mteb)
    for task in tasks:
        load_data(task)
        say(f"{task.metadata.name}: {', '.join(paths_of(task))}")
    return [task.metadata.name for task in tasks]


if __name__ == "__main__":
    sys.exit(main())

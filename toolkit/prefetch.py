"""What jobs will need and compute nodes cannot fetch: models and tokenizers, brought to this
machine's hub cache, on a login node.

    python -m toolkit.prefetch RECIPE [key=value ...]

Jobs look into the same cache (HF_HOME, on a file system that all nodes share) and never into the
network. What was fetched stands in RUN_DIR/prefetched.json.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit.cluster.launched import PREFETCHED_FILE
from toolkit.door import guarded
from toolkit.files import BadInput, is_committed, write_json
from toolkit.stages import inputs_of, resolve


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.prefetch`."""
    parser = argparse.ArgumentParser(
        prog="python -m toolkit.prefetch",
        description="Fetch the models that a recipe names into the hub cache, before it is queued.",
        epilog="examples:\n  python -m toolkit.prefetch llm2vec_mistral_7b run_dir=runs/a\n"
        "  HF_HOME=/shared/hub python -m toolkit.prefetch mntp_llama2_7b",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a name or a file, as for toolkit.launch")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    return guarded(lambda: prefetch(arguments.recipe, overrides=arguments.overrides))


def prefetch(recipe: str, *, overrides: Sequence[str]) -> None:
    """Fetch every model that is not there and that no earlier stage writes; write the manifest.

    Raises `BadInput` for a model that cannot be had and for shards that are not there.
    """
    _, run_dir, stages = resolve(recipe, overrides=overrides)
    needed = [inputs_of(stages, name=name) for name in stages]
    models = list(dict.fromkeys(model for found, _ in needed for model in found))
    shards = list(dict.fromkeys(place for _, found in needed for place in found))
    for place in shards:
        if not is_committed(Path(place)):
            raise BadInput(f"{place}: no whole shard directory; make it first (data_scripts)")
    # This is where the network is; what the user says of it counts.
    os.environ.setdefault("HF_HUB_OFFLINE", "0")
    from toolkit.model.weights import base_folder, model_digest  # brings torch and the hub's client

    told = {}
    for model in models:
        folder = base_folder(model)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        told[model] = {
            "folder": str(folder.absolute()),
            "bytes": size,
            "digest": model_digest(folder),
        }
        print(f"{model}: {size / 1e9:.2f} GB in {folder}", flush=True)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / PREFETCHED_FILE, {"models": told, "shards": shards})
    print(f"all that {recipe} needs is here; see {run_dir / PREFETCHED_FILE}")


if __name__ == "__main__":
    sys.exit(main())

"""Some steps of `toolkit.train`: RECIPE key=value ...

Prints real tokens and rows a second over the steps after the first (or of a single one), as its
metrics tell them, and what they say of the device at the end.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from toolkit import train
from toolkit.runs.records import read_metrics
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import TrainingRecipe


def main(recipe: str, *overrides: str) -> int:
    """Train in a directory that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        given = [*overrides, f"run_dir={folder}/run", "train.log_every_steps=1"]
        loaded = load_recipe(recipe, overrides=given)
        assert isinstance(loaded, TrainingRecipe)
        code = train.main([recipe, *given])
        if code:
            return code
        told = read_metrics(Path(folder) / "run")
    timed = told[1:] or told
    seconds = sum(row["seconds"] for row in timed)
    tokens = sum(row["tokens"] for row in timed)
    rows = len(timed) * loaded.train.global_batch_rows
    used = {
        key: statistics.median(row[key] for row in timed)
        for key in ("mfu", "hfu", "memory_gib")
        if key in timed[0]
    }
    print(json.dumps({"tokens_per_s": tokens / seconds, "rows_per_s": rows / seconds, **used}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

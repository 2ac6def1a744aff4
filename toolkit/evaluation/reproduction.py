"""Our scores beside published ones: by category, with differing settings and the hours spent.

Knows references (toolkit/references) and run directories. Refuses to know how a score is made.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from toolkit.base.errors import BadInput, did_you_mean
from toolkit.base.layout import CONFIG_FILE, ENCODER_DIR
from toolkit.base.shown import as_code, in_markdown
from toolkit.runs.records import read_metrics, read_starts
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EncoderSettings, TrainingRecipe

REFERENCE_DIR = Path(__file__).parents[1] / "references"
AVERAGE = "Average"


@dataclasses.dataclass(frozen=True)
class Reference:
    """Published scores in per cent by encoder and category (MTEB's names, and "Average", the mean
    over tasks), and the settings and hours of each kind of run."""

    name: str
    source: str
    scores: Mapping[str, Mapping[str, float]]
    settings: Mapping[str, Mapping[str, Any]]
    hours: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Scored:
    """The main score of an encoder on a task, from 0 to 1."""

    encoder: str
    category: str
    value: float


def reference_names() -> list[str]:
    """The names of the references that the project ships."""
    return sorted(path.stem for path in REFERENCE_DIR.glob("*.yaml"))


def read_reference(name: str, *, encoders: Sequence[str]) -> Reference:
    """Read a reference by its name, or by the path of a .yaml file of the same form.

    Raises `BadInput` when it cannot be read, or has scores of none of the encoders.
    """
    path = Path(name) if name.endswith(".yaml") else REFERENCE_DIR / f"{name}.yaml"
    if not path.is_file():
        valid = reference_names()
        near = did_you_mean(name, valid)
        raise BadInput(f"reference={name}: give a .yaml file, or one of {', '.join(valid)}{near}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        hours = content.get("hours") or {}
        reference = Reference(
            name, content["source"], content["scores"], content["settings"], hours
        )
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: is not a reference ({error!r}); see {REFERENCE_DIR}") from error
    if not set(encoders) & set(reference.scores):
        names = ", ".join(reference.scores)
        raise BadInput(f"{path}: knows {names}; no encoder of the recipe has such a name")
    return reference


def report(
    reference: Reference, scored: Sequence[Scored], *, encoders: Mapping[str, EncoderSettings]
) -> str:
    """The comparison as Markdown: scores, settings that differ, hours."""
    known = [name for name in encoders if name in reference.scores]
    title, source = in_markdown(reference.name), in_markdown(reference.source)
    lines = [f"# Reproduction: {title}", "", f"Reference: {source}", ""]
    lines += ["| encoder | category | tasks | ours | reference | difference |"]
    lines += ["|---|---|---|---|---|---|"]
    for name in known:
        lines += _rows(name, reference.scores[name], scored=scored)
    lines += ["", "## Settings that differ", ""]
    runs = {run: recipe for name in known for run, recipe in chain(encoders[name].model)}
    differences = [
        line for run, recipe in runs.items() for line in _differences(run, recipe, reference)
    ]
    lines += differences or ["None of those that the reference lists."]
    lines += ["", "## What it took", ""]
    lines += [_hours(run, recipe, reference) for run, recipe in runs.items()] or ["No run is here."]
    return "\n".join(lines) + "\n"


def chain(model: str) -> Iterator[tuple[Path, TrainingRecipe]]:
    """The training runs that made a model, the last one first, as far as they are here."""
    run = Path(model)
    while True:
        # RUN/encoder is the export of RUN.
        if run.name == ENCODER_DIR and not (run / CONFIG_FILE).is_file():
            run = run.parent
        if not (run / CONFIG_FILE).is_file():
            return
        recipe = load_recipe(str(run / CONFIG_FILE))
        if not isinstance(recipe, TrainingRecipe):
            return
        yield run, recipe
        run = Path(recipe.model.base)


def _rows(name: str, published: Mapping[str, float], *, scored: Sequence[Scored]) -> Iterator[str]:
    mine = [one for one in scored if one.encoder == name]
    for category, theirs in published.items():
        # The average is over tasks, as MTEB's is, and not over categories.
        values = [one.value for one in mine if category in (AVERAGE, one.category)]
        if values:
            ours = 100 * float(np.mean(values))
            cells = [str(len(values)), f"{ours:.2f}", f"{theirs:.2f}", f"{ours - theirs:+.2f}"]
        else:
            cells = ["0", "-", f"{theirs:.2f}", "-"]
        yield f"| {in_markdown(name)} | {in_markdown(category)} | {' | '.join(cells)} |"


def _differences(run: Path, recipe: TrainingRecipe, reference: Reference) -> Iterator[str]:
    settings = recipe.model_dump(mode="json")
    for key, theirs in reference.settings.get(recipe.kind, {}).items():
        ours: Any = settings
        for part in key.split("."):
            ours = ours.get(part) if isinstance(ours, dict) else None
        same = ours == theirs
        # An integer may stand for a float, and floats need not agree to the last bit.
        if isinstance(theirs, float) and isinstance(ours, int | float):
            same = math.isclose(ours, theirs, rel_tol=1e-9)
        if not same:
            difference = (
                f"{as_code(key)} is {in_markdown(ours)}, in the reference {in_markdown(theirs)}"
            )
            yield f"- {in_markdown(run)} ({recipe.kind}): {difference}"


def _hours(run: Path, recipe: TrainingRecipe, reference: Reference) -> str:
    """GPU hours: mean seconds per step times steps and ranks, without logging and saving."""
    seconds = [row["seconds"] for row in read_metrics(run) if row.get("seconds")]
    starts = read_starts(run)
    if not seconds or not starts:
        return f"- {in_markdown(run)} ({recipe.kind}): not recorded"
    ranks, device = int(starts[-1]["world_size"]), str(starts[-1]["device"])
    hours = float(np.mean(seconds)) * recipe.train.steps * ranks / 3600
    theirs = reference.hours.get(recipe.kind)
    beside = "" if theirs is None else f"; reference {theirs:.2f}"
    took = f"{hours:.2f} hours of {in_markdown(device)}, {ranks} ranks{beside}"
    return f"- {in_markdown(run)} ({recipe.kind}): {took}"

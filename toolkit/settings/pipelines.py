"""Recipes of pipelines: which override goes to which stage, and the recipe that each stage gets.

Knows stages. Refuses to know what runs them.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from os.path import normpath
from pathlib import Path
from typing import Any, cast

from toolkit.base.errors import BadInput, did_you_mean
from toolkit.base.layout import ENCODER_DIR
from toolkit.settings.domain_schema import MineRecipe
from toolkit.settings.pipeline_schema import PipelineRecipe
from toolkit.settings.recipes import flatten, load_recipe, parse_override, parse_recipe
from toolkit.settings.schema import Recipe, StageRecipe, TrainingRecipe
from toolkit.settings.section import has_key, keys_of


def resolve(
    name: str, *, overrides: Sequence[str], kinds: Sequence[str] = ()
) -> tuple[Recipe, Path, dict[str, StageRecipe]]:
    """The recipe, its directory, and its stages by name; a single recipe is its only stage. That of
    a pipeline has all overrides in it. The error for an unknown name lists the recipes of `kinds`.
    """
    if load_recipe(name, kinds=kinds).kind == "pipeline":
        own, rest = split_overrides(overrides)
        pipeline = load_recipe(name, overrides=own)
        assert isinstance(pipeline, PipelineRecipe)
        pipeline = with_overrides(pipeline, overrides=rest)
        return pipeline, Path(pipeline.run_dir), resolve_stages(pipeline)
    recipe = load_recipe(name, overrides=overrides)
    assert not isinstance(recipe, PipelineRecipe)
    return recipe, output_of(recipe), {recipe.kind: recipe}


def resolve_stages(
    pipeline: PipelineRecipe, *, overrides: Sequence[str] = ()
) -> dict[str, StageRecipe]:
    """The recipe of every stage with the pipeline's values and the user's overrides applied."""
    pipeline = with_overrides(pipeline, overrides=overrides)
    values = flatten(pipeline.model_dump(exclude={"stages", "skip"}))
    if unknown := [name for name in pipeline.skip if name not in pipeline.stages]:
        near = did_you_mean(unknown[0], pipeline.stages)
        raise BadInput(f"skip: no stage {unknown[0]!r}; stages: {', '.join(pipeline.stages)}{near}")
    resolved: dict[str, StageRecipe] = {}
    for name, stage in pipeline.stages.items():
        own = [f"{key}={json.dumps(_fill(v, values=values))}" for key, v in stage.set.items()]
        recipe = load_recipe(stage.recipe, overrides=own)
        if isinstance(recipe, PipelineRecipe):
            raise BadInput(f"stage {name}: {stage.recipe} is a pipeline; a stage is a single run")
        resolved[name] = recipe
    return _without(resolved, skipped=pipeline.skip)


def with_overrides(pipeline: PipelineRecipe, *, overrides: Sequence[str]) -> PipelineRecipe:
    """The pipeline with the user's overrides among the values that it sets in its stages, so that
    it says all that decides its run. Braces in them mean themselves, as in an instruction format.

    `stage.key.path=value` goes to that stage; `key.path=value` to every stage that has the key.
    Raises `BadInput` for a key that no stage has, and for one without a stage where the pipeline
    gives several stages different values.
    """
    if not overrides:
        return pipeline
    data = pipeline.model_dump(mode="json")
    for override in overrides:
        _, value = parse_override(override)
        for stage, key in places_of(pipeline, override=override).items():
            values = data["stages"][stage]["set"]
            values.pop(key, None)  # the last one counts, also beside a key above or below it
            values[key] = _in_texts(value, change=lambda text: text.replace("{", "{{"))
    made = parse_recipe(data, source="pipeline")
    assert isinstance(made, PipelineRecipe)
    return made


def places_of(pipeline: PipelineRecipe, *, override: str) -> dict[str, str]:
    """The stages that an override reaches, with its key in each. Raises `BadInput` as
    `with_overrides` does."""
    key, _ = parse_override(override)
    types = {name: _type_of(stage.recipe) for name, stage in pipeline.stages.items()}
    first, _, rest = key.partition(".")
    # A stage may have the name of a section: mntp.mask_probability is the section's key.
    if first in types and not has_key(types[first], key=key):
        return {first: rest}
    takers = [name for name, kind in types.items() if has_key(kind, key=key)]
    if not takers:
        near = did_you_mean(key, _keys_of_stages(types))
        raise BadInput(f"override {override!r}: no stage has the key {key!r}{near}")
    in_each = {
        name: {k: v for k, v in pipeline.stages[name].set.items() if _is_within(k, key)}
        for name in takers
        if name not in pipeline.skip
    }
    if any(values != next(iter(in_each.values())) for values in in_each.values()):
        given = [str(value) for values in in_each.values() for value in values.values()]
        own = [value[1:-1] for value in given if re.fullmatch(r"\{[a-z_.]+\}", value)]
        whole = [*(f"{name}.{key}=..." for name in in_each), *(f"{one}=..." for one in own)]
        raise BadInput(
            f"override {override!r}: this pipeline gives {key!r} different values in the stages "
            f"{', '.join(in_each)}; say which: {' or '.join(whole)}"
        )
    return dict.fromkeys(takers, key)


@functools.cache
def _type_of(recipe: str) -> type[Recipe]:  # cached: reading it for every override takes long
    return type(load_recipe(recipe))


def _is_within(one: str, other: str) -> bool:
    """Whether one of two keys is the other, or above it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split overrides into the pipeline's own (run_dir, model.base, ...) and those for stages."""
    own = [o for o in overrides if has_key(PipelineRecipe, key=parse_override(o)[0])]
    return own, [o for o in overrides if o not in own]


def output_of(recipe: StageRecipe) -> Path:
    """The directory into which a stage writes."""
    return Path(recipe.run_dir if isinstance(recipe, TrainingRecipe) else recipe.output_dir)


def _without(
    stages: Mapping[str, StageRecipe], *, skipped: Sequence[str]
) -> dict[str, StageRecipe]:
    """The stages without those that are left out. Where one names the encoder of a training stage
    that is left out, it names that stage's base model instead; and instead of the output of a
    stage that mines negatives, the pairs without them."""
    instead: dict[str, str] = {}
    left: dict[str, StageRecipe] = {}

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: renamed(one) for key, one in value.items()}
        if isinstance(value, list):
            return [renamed(one) for one in value]
        # By the place that they name: runs/a/ and ./runs/a are the same folder.
        return instead.get(normpath(value), value) if isinstance(value, str) else value

    for name, recipe in stages.items():
        if instead:
            data = renamed(recipe.model_dump(mode="json"))
            recipe = cast(StageRecipe, parse_recipe(data, source=name))
        if name not in skipped:
            left[name] = recipe
        elif isinstance(recipe, TrainingRecipe):
            encoder = Path(recipe.run_dir) / ENCODER_DIR
            places = (normpath(recipe.run_dir), normpath(encoder))
            instead |= dict.fromkeys(places, recipe.model.base)
        elif isinstance(recipe, MineRecipe):
            instead[normpath(recipe.output_dir)] = recipe.pairs
    return left


def _keys_of_stages(types: Mapping[str, type[Recipe]]) -> list[str]:
    own = {name: keys_of(kind) for name, kind in types.items()}
    shared = dict.fromkeys(key for keys in own.values() for key in keys)
    return [*shared, *(f"{name}.{key}" for name, keys in own.items() for key in keys)]


def _in_texts(value: Any, *, change: Callable[[str], Any]) -> Any:
    """The value with all its texts changed, those in its groups of values and their keys too."""
    if isinstance(value, dict):
        return {change(key): _in_texts(one, change=change) for key, one in value.items()}
    return change(value) if isinstance(value, str) else value


def _fill(value: Any, *, values: Mapping[str, Any]) -> Any:
    def replace(match: re.Match[str]) -> str:
        if match[0] == "{{":
            return "{"
        if match[1] not in values:
            raise BadInput(f"{{{match[1]}}}: valid placeholders: {', '.join(values)}")
        if values[match[1]] is None:
            raise BadInput(f"this pipeline needs {match[1]}: give {match[1]}=...")
        return str(values[match[1]])

    def fill(text: str) -> Any:
        whole = values.get(text[1:-1]) if text[:1] + text[-1:] == "{}" else None
        if isinstance(whole, dict):
            return whole  # the sources of a mixture are no text
        return re.sub(r"\{\{|\{([a-z_.]+)\}", replace, text)

    return _in_texts(value, change=fill)

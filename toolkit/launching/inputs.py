"""What a stage reads, and which of it is not there.

Knows recipes, paths and what earlier stages will write. Refuses to know jobs. Nothing here imports
torch.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from toolkit.base.console import warn
from toolkit.base.errors import BadInput
from toolkit.base.files import is_committed
from toolkit.base.layout import MANIFEST_FILE
from toolkit.settings.domain_schema import DocumentsRecipe, MineRecipe, ReportRecipe
from toolkit.settings.hub import not_here
from toolkit.settings.merge_schema import MergeRecipe
from toolkit.settings.mixture_schema import single_source, sources_of
from toolkit.settings.model_source import is_adapter, resolve_model
from toolkit.settings.pipelines import output_of
from toolkit.settings.questions_schema import QuestionsRecipe
from toolkit.settings.schema import (
    EmbedRecipe,
    EvaluateRecipe,
    GradedRecipe,
    StageRecipe,
    SupervisedRecipe,
    TrainingRecipe,
)
from toolkit.text.folders import overlap

HOW_TO_SHARD = "make it with data_scripts/shard_wikipedia.py --input DUMP --output DIR"
HOW_TO_FETCH = (
    "fetch it on a node with a network: python -m toolkit.prefetch RECIPE (where jobs do reach the "
    "hub, HF_HUB_OFFLINE=0; where they have a cache of their own, --allow-missing-models)"
)
HOW_TO_PAIR = "make it with data_scripts/prepare_pairs.py --input FILES --output DIR"


def check_inputs(
    stages: Mapping[str, StageRecipe], *, name: str, models_must_be_here: bool
) -> None:
    """Raise `BadInput` for the first of `missing_inputs`."""
    for missing in missing_inputs(stages, name=name, models_must_be_here=models_must_be_here):
        raise BadInput(missing)


def missing_inputs(
    stages: Mapping[str, StageRecipe], *, name: str, models_must_be_here: bool
) -> Iterator[str]:
    """One line for each input of a stage that cannot be read.

    What an earlier stage will write does not exist yet and is left out. A hub model that is not in
    this machine's cache is only a warning where it need not be here.
    """
    recipe = stages[name]
    outputs = _outputs_before(stages, name=name)
    for path in _files_of(recipe):
        if not Path(path).exists() and not _comes_later(path, outputs=outputs):
            yield f"{name}: {path}: no such file"
    if isinstance(recipe, DocumentsRecipe):
        if not Path(recipe.source).exists():
            yield f"{name}: {recipe.source}: no such file or folder"
        if problem := overlap(Path(recipe.output_dir), source=Path(recipe.source)):
            yield f"{name}: {problem}"
    if isinstance(recipe, GradedRecipe):
        path = single_source(recipe.data.train)
        if not Path(path).is_file():
            yield f"{name}: {path}: no such file; give a .tsv or .csv of graded pairs"
    models, shards = inputs_of(stages, name=name)
    for directory in shards:
        if not is_committed(Path(directory)):
            of_pairs = isinstance(recipe, SupervisedRecipe | MineRecipe)
            how = HOW_TO_PAIR if of_pairs else HOW_TO_SHARD
            yield f"{name}: {directory}: no whole shard directory; {how}"
    for model in models:
        try:
            if isinstance(recipe, TrainingRecipe) or not is_adapter(Path(model)):
                model = resolve_model(model).name
        except BadInput as error:
            yield str(error)
            continue
        if problem := not_here(model):
            if os.path.isdir(model):
                yield f"{name}: {problem}; copy or download it again"
            elif models_must_be_here:
                yield f"{name}: {problem}, and jobs run offline; {HOW_TO_FETCH}"
            else:
                warn(f"{name}: {problem}")


def inputs_of(stages: Mapping[str, StageRecipe], *, name: str) -> tuple[list[str], list[str]]:
    """The models and the shards that a stage reads, except those that an earlier stage writes."""
    recipe = stages[name]
    if isinstance(recipe, TrainingRecipe):
        # Graded pairs are a file, and no directory of shards.
        is_file = isinstance(recipe, GradedRecipe)
        models, shards = [recipe.model.base], [] if is_file else [*sources_of(recipe.data.train)]
    elif isinstance(recipe, EmbedRecipe):
        models = [recipe.encoder.model, *recipe.encoder.adapters]
        shards = [recipe.corpus.input]
    elif isinstance(recipe, DocumentsRecipe | ReportRecipe):
        models, shards = [], []
    elif isinstance(recipe, MineRecipe):
        models, shards = [], [recipe.pairs]
    elif isinstance(recipe, MergeRecipe):
        models, shards = [*recipe.models.values(), *([recipe.base] if recipe.base else [])], []
    elif isinstance(recipe, QuestionsRecipe):
        models, shards = [recipe.generator.model], [recipe.corpus.input]
    else:
        models = [m for one in recipe.encoders.values() for m in (one.model, *one.adapters)]
        shards = [task.corpus for task in recipe.retrieval.values()]
    outputs = _outputs_before(stages, name=name)
    there = [
        [path for path in paths if not _comes_later(path, outputs=outputs)]
        for paths in (models, shards)
    ]
    return there[0], there[1]


def _outputs_before(stages: Mapping[str, StageRecipe], *, name: str) -> list[Path]:
    """The directories that the stages before this one write."""
    before = list(stages)[: list(stages).index(name)]
    return [output_of(stages[earlier]).absolute() for earlier in before]


def _files_of(recipe: StageRecipe) -> list[str]:
    """The files that a stage reads, beside models and shards; the job checks their content."""
    if isinstance(recipe, QuestionsRecipe):
        return [path for path in (recipe.documents, recipe.prompt, recipe.examples) if path]
    if isinstance(recipe, MineRecipe):
        return [str(Path(recipe.embeddings) / MANIFEST_FILE)]
    if not isinstance(recipe, EvaluateRecipe):
        return []
    paths = [*recipe.sts.values(), *recipe.clustering.values(), *recipe.reranking.values()]
    paths += recipe.pair_classification.values()
    paths += [part for task in recipe.classification.values() for part in (task.train, task.test)]
    paths += [part for task in recipe.words.values() for part in (task.train, task.test)]
    for task in recipe.retrieval.values():
        paths += [task.queries, *([task.judgements] if task.judgements else [])]
    return paths


def _comes_later(path: str, *, outputs: Sequence[Path]) -> bool:
    absolute = Path(path).absolute()
    return any(absolute == output or output in absolute.parents for output in outputs)

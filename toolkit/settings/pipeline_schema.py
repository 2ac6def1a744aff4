"""What a recipe may say about a pipeline: its stages in order, and the values that they share.

Knows names, types and ranges of settings. Refuses to know what the stages are.
"""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from toolkit.settings.mixture_schema import Sources
from toolkit.settings.section import Section, Text


class Stage(Section):
    """One job of a pipeline: a recipe, and the values that this pipeline sets in it, in order.

    In a text `{key}` is replaced by the pipeline's value, as in `{run_dir}/mntp/encoder`, and `{{`
    is a brace; in a group of values also in its keys.
    """

    recipe: Text
    set: dict[str, JsonValue] = {}


class PipelineModel(Section):
    """The base model of the first training stage, the encoder that a domain's is merged with, and
    the decoder that writes questions."""

    base: Text
    general: Text | None = None
    generator: Text | None = None


class PipelineData(Section):
    """The training shards of all stages, or the documents that a stage makes them of."""

    train: Sources | None = None
    source: Text | None = None


class PipelineCorpus(Section):
    """The corpus that the last stage embeds."""

    input: Text | None = None


class PipelineRecipe(Section):
    """Stages in order; each becomes a job that depends on the one before.

    The stages that `skip` names are left out; what goes on from a training stage that is left out
    goes on from its base model, and what reads the output of a stage that mines negatives reads the
    pairs without them."""

    kind: Literal["pipeline"]
    run_dir: Text
    model: PipelineModel
    data: PipelineData = PipelineData()
    corpus: PipelineCorpus = PipelineCorpus()
    skip: tuple[Text, ...] = ()
    stages: Annotated[dict[str, Stage], Field(min_length=1)]

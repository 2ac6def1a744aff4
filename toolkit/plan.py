# PYTHON_ARGCOMPLETE_OK
"""What a recipe will need on a cluster, before anything waits in a queue.

python -m toolkit.plan RECIPE [--nodes N] [--gpus-per-node 8] [--gpu h100] [key=value ...]
"""

import argparse
import math
import sys
from collections.abc import Mapping

from toolkit.base.console import say, say_lines
from toolkit.base.errors import BadInput
from toolkit.command_line.completion import answer_shell
from toolkit.command_line.door import Parser, add_recipe, guarded
from toolkit.runs.estimate import (
    FP8_GPUS,
    GIB,
    GPUS,
    Cluster,
    Need,
    busy_rows,
    faster,
    gpu_of,
    need,
    recommend,
)
from toolkit.runs.shapes import Shape, shape_of
from toolkit.settings.catalogue import recipes_text
from toolkit.settings.mixture_schema import sources_of
from toolkit.settings.pipeline_schema import PipelineRecipe
from toolkit.settings.pipelines import resolve
from toolkit.settings.questions_schema import QuestionsRecipe
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EmbedRecipe, EncoderSettings, SharedRecipe, TrainingRecipe
from toolkit.settings.training_checks import fit_to_ranks

GBIT = 1e9 / 8
KINDS = ("pipeline", "mntp", "simcse", "supervised", "graded", "embed", "questions")


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.plan`."""
    parser = Parser(
        prog="python -m toolkit.plan",
        description="Estimate the memory per GPU, the time and the network that training stages "
        "will need (what ZeRO partitions is exact). A step takes the longest of computing, the "
        "host's work and the traffic that overlaps them, plus the traffic that all ranks wait for. "
        "Of an embedding: tokens, time, disk, memory of indexes and cost, from a sample of its "
        "corpus and the model's config.json and tokenizer, without weights.",
        epilog="examples:\n  python -m toolkit.plan llm2vec_mistral_7b --nodes 2 --gpu a100\n"
        "  python -m toolkit.plan embed_corpus corpus.input=shards/wikipedia --price 2.50\n\n"
        f"{recipes_text(KINDS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_recipe(parser)
    parser.add_argument("--nodes", type=int, default=1, help="number of nodes (default 1)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="GPUs per node (default 8)")
    parser.add_argument("--gpu", default="h100", help=f"one of {', '.join(GPUS)} (default h100)")
    parser.add_argument(
        "--network-gbit",
        type=float,
        default=3200,
        help="Gbit/s per node, over all its ports (default 3200, as 8 x 400)",
    )
    parser.add_argument(
        "--efficiency", type=float, default=0.45, help="fraction of the peak reached (default 0.45)"
    )
    embedding = parser.add_argument_group("of an embedding, and of questions")
    embedding.add_argument("--price", type=float, help="what a GPU costs per hour, in any currency")
    embedding.add_argument(
        "--tokens-per-s",
        type=float,
        metavar="N",
        help="what one GPU (or process on a CPU) does, as a short run has shown; without it, an "
        "estimate by the GPU's peak",
    )
    embedding.add_argument(
        "--sample", type=int, default=1000, metavar="ROWS", help="texts to read (default 1000)"
    )
    answer_shell(parser, kinds=KINDS)
    arguments = parser.parse_intermixed_args(argv)
    return guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Print the estimate of every training stage. Raises `BadInput` where there can be none."""
    cluster = cluster_of(arguments)
    if load_recipe(arguments.recipe, kinds=KINDS).kind in ("embed", "questions"):
        shared = load_recipe(arguments.recipe, overrides=arguments.overrides)
        assert isinstance(shared, SharedRecipe)
        _check_options(arguments)
        if isinstance(shared, EmbedRecipe):
            text = describe_embedding(shared, arguments=arguments, cluster=cluster)
        else:
            text = describe_questions(shared, arguments=arguments, cluster=cluster)
        say_lines(text)
        return
    base, stages = training_stages(arguments.recipe, overrides=arguments.overrides)
    shape = shape_of(base)
    total = f"{shape.weights(head=True) / 1e9:.2f} B parameters"
    say(f"{base}: {total}; {cluster.nodes} x {cluster.gpus_per_node} {arguments.gpu}")
    for name, asked in stages.items():
        say()
        recipe = fit_to_ranks(asked, world_size=cluster.world, tell=say)
        say_lines(describe(name, recipe, shape=shape, cluster=cluster))


def cluster_of(arguments: argparse.Namespace) -> Cluster:
    """The cluster that the command line describes."""
    gpu = gpu_of(arguments.gpu)
    for name in ("nodes", "gpus_per_node", "network_gbit"):
        if getattr(arguments, name) <= 0:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(arguments, name)}: at least 1")
    if not 0 < arguments.efficiency <= 1:
        raise BadInput(f"--efficiency {arguments.efficiency}: between 0 and 1")
    return Cluster(
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        gpu=gpu,
        network=arguments.network_gbit * GBIT,
        efficiency=arguments.efficiency,
    )


def training_stages(name: str, *, overrides: list[str]) -> tuple[str, Mapping[str, TrainingRecipe]]:
    """The base model and the training stages of a recipe or pipeline. Later stages train what the
    earlier ones made of the base model, so that it gives the shape of all."""
    recipe, _, stages = resolve(name, overrides=overrides, kinds=KINDS)
    if isinstance(recipe, PipelineRecipe):
        trained = {key: r for key, r in stages.items() if isinstance(r, TrainingRecipe)}
        return recipe.model.base, trained
    if not isinstance(recipe, TrainingRecipe):
        raise BadInput(
            f"recipe {name!r} is of kind {recipe.kind!r}; toolkit.plan takes {', '.join(KINDS)}"
        )
    return recipe.model.base, {recipe.kind: recipe}


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise `BadInput` for a price, a speed or a sample that cannot be."""
    for name in ("price", "tokens_per_s", "sample"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise BadInput(f"--{name.replace('_', '-')} {value}: more than 0")


def describe_questions(
    recipe: QuestionsRecipe, *, arguments: argparse.Namespace, cluster: Cluster
) -> str:
    """The forecast of questions as text. Raises `BadInput` as `forecast` does."""
    from toolkit.domain.forecast import forecast

    found = forecast(recipe, sample_rows=arguments.sample)
    rate, per_document = arguments.tokens_per_s, recipe.per_document
    lines = found.lines(per_document=per_document, tokens_per_s=rate, world=cluster.world)
    if arguments.price and rate:
        total = arguments.price * (found.read.value + found.written) / rate / 3600
        each = total / found.documents * 1000
        lines.append(f"  cost: at most {total:,.2f} in all, {each:,.2f} per thousand documents")
    return "\n".join(lines)


def _planned_dtype(encoder: EncoderSettings, *, gpu: str) -> str:
    """The type that texts are encoded in on a GPU. Raises `BadInput` if it has no such products."""
    if not encoder.fp8:
        return "bf16" if encoder.dtype == "auto" else encoder.dtype
    if gpu not in FP8_GPUS:
        valid = ", ".join(sorted(FP8_GPUS))
        raise BadInput(f"encoder.fp8=true: --gpu {gpu} has no products of 8 bits; {valid} have")
    return "fp8"


def describe_embedding(
    recipe: EmbedRecipe, *, arguments: argparse.Namespace, cluster: Cluster
) -> str:
    """An embedding's forecast as text. Raises `BadInput` as `forecast` does."""
    from toolkit.encoding.forecast import forecast

    found = forecast(recipe, sample_rows=arguments.sample)
    if not found.tokens.value:
        raise BadInput(f"{recipe.corpus.input}: the texts that were read have no tokens")
    dtype = _planned_dtype(recipe.encoder, gpu=arguments.gpu)
    rate = arguments.tokens_per_s or found.tokens_per_s(cluster, dtype=dtype)
    hours = found.tokens.value / rate / cluster.world / 3600
    device = "process" if arguments.tokens_per_s else arguments.gpu
    how = "as given" if arguments.tokens_per_s else f"{cluster.efficiency:.0%} of its peak"
    rows = f", {found.rows.value:,.0f} rows of chunks" if recipe.corpus.chunk_tokens else ""
    cut = found.cut.value / found.texts
    lines = [
        f"{recipe.encoder.model}: {found.shape.weights(head=False) / 1e9:.2f} B parameters, "
        f"vectors of {found.width} numbers; {recipe.corpus.input}: {found.texts:,} texts{rows} "
        f"(read: {found.sampled:,} texts)",
        f"  tokens: {_millions(found.tokens.value)} +- {_millions(2 * found.tokens.error)} (95 %), "
        f"{found.tokens.value / found.texts:,.0f} per text"
        + (f"; {cut:.1%} of the texts reach encoder.max_tokens" if cut else ""),
        f"  time: {_time(hours)} on {cluster.world} x {device}, each {rate:,.0f} tokens/s ({how}; "
        f"{dtype})",
    ]
    if dtype == "fp32" and not arguments.tokens_per_s:
        lines[-1] += "; encoder.dtype=auto computes in bf16"
    if arguments.price:
        total = arguments.price * hours * cluster.world
        billion = total / found.tokens.value * 1e9
        lines.append(f"  cost: {total:,.2f} in all, {billion:,.2f} per billion tokens")
    sizes = found.disk()
    shown = ", ".join(f"{form} {_bytes(size)}" for form, size in sizes.items())
    lines.append(f"  disk, with ids: {shown} (vectors={recipe.vectors})")
    if recipe.reuse is not None:
        lines.append(f"  all texts are counted, also those that reuse={recipe.reuse} has")
    indexes = ", ".join(f"{kind} {_bytes(size)}" for kind, size in found.indexes().items())
    lines.append(f"  memory of an index: {indexes}")
    return "\n".join(lines)


def _millions(number: float) -> str:
    unit, name = (1e9, " billion") if number >= 1e9 else (1e6, " million")
    return f"{number / unit:.3g}{name}" if number >= 1e5 else f"{number:,.0f}"


def _bytes(number: float) -> str:
    units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    size, name = next((unit for unit in units if number >= unit[0]), (1, "B"))
    return f"{number / size:.3g} {name}"


def describe(name: str, recipe: TrainingRecipe, *, shape: Shape, cluster: Cluster) -> str:
    """A stage's estimate as text: steps, time, memory by layout, and advice."""
    asked = need(shape, recipe, layout_name=recipe.deepspeed.config, cluster=cluster)
    best = recommend(shape, recipe, cluster=cluster)
    lines = [
        f"{name}: {recipe.train.steps} steps of {recipe.train.global_batch_rows} rows, "
        f"{_time(asked.hours)} at {asked.tokens_per_s:,.0f} tokens/s (full rows)",
        *_rows_of(recipe),
        f"  {_step(asked)}",
        *_memory(asked, best=best),
        f"  {verdict(asked, best=best, cluster=cluster)}",
    ]
    # Less than a twentieth of the step is within the error of the estimate.
    if asked.step_s > 1.05 * asked.compute_s:
        cause = "the network slows it down"
        if asked.is_host_bound:
            cause = f"host-bound: starting operations takes longer than {asked.tokens:,.0f} tokens"
        changes = faster(shape, recipe, asked=asked, cluster=cluster)
        options = "; ".join(f"{what}: {_time(needed.hours)}" for what, needed in changes[:3])
        lines.append(f"  {cause}; {options or _too_small(asked, recipe, cluster=cluster)}")
    return "\n".join(lines)


def _rows_of(recipe: TrainingRecipe) -> list[str]:
    """How many rows each source of a mixture gives in all."""
    sources = sources_of(recipe.data.train)
    rows = recipe.train.steps * recipe.train.global_batch_rows
    shown = ", ".join(f"{share * rows:,.0f} of {name}" for name, share in sources.items())
    return [f"  rows: {shown}"] if len(sources) > 1 else []


def _too_small(asked: Need, recipe: TrainingRecipe, *, cluster: Cluster) -> str:
    """What would help where no other layout and micro-batch does: fewer GPUs, or a larger batch."""
    rows, whole = busy_rows(asked, recipe=recipe, cluster=cluster), recipe.train.global_batch_rows
    if rows is None:
        return "no other layout or micro-batch helps"
    return (
        f"the batch of {whole} rows is too small for {cluster.world} GPUs: "
        f"{max(1, whole // rows)} would do, or another run with "
        f"train.global_batch_rows={rows * cluster.world}"
    )


def _step(asked: Need) -> str:
    """The seconds of one step: the longest of what overlaps, and the traffic afterwards."""
    after = f", and {asked.exposed_s:.3g} s after it" if asked.exposed_s else ""
    return (
        f"per step: {asked.step_s:.3g} s; {asked.compute_s:.3g} s of computing, beside it "
        f"{asked.host_s:.3g} s of the host and {asked.hidden_s:.3g} s of network{after}"
    )


def _time(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.2g} s"
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.2g} min"


def _memory(asked: Need, *, best: Need | None) -> list[str]:
    # The recommended layout stands beside the asked one, where it is another.
    shown = [asked] + ([best] if best and best.layout != asked.layout else [])
    names = list(dict.fromkeys(item for one in shown for item in one.memory))
    rows = [["GiB per GPU", *(one.layout for one in shown)]]
    for item in names:
        rows.append([item, *(f"{one.memory.get(item, 0) / GIB:.2f}" for one in shown)])
    rows.append(["in all", *(f"{one.total / GIB:.2f}" for one in shown)])
    if any(one.host for one in shown):
        rows.append(["host, per node", *(f"{one.host / GIB:.2f}" for one in shown)])
    return ["  " + f"{row[0]:<18}" + "".join(f"{cell:>15}" for cell in row[1:]) for row in rows]


def verdict(asked: Need, *, best: Need | None, cluster: Cluster) -> str:
    """Whether the asked layout fits the GPU, and which layout would be better."""
    room = cluster.gpu.memory / GIB
    fits = asked.fits(cluster.gpu)
    answer = f"deepspeed.config={asked.layout} {'fits' if fits else 'does not fit'} {room:.0f} GiB"
    if best is None:
        return f"{answer}, nor does any other: take more GPUs, or a smaller train.micro_batch_rows"
    if best.layout == asked.layout:
        return answer if not fits else f"{answer}, and is recommended"
    return f"{answer}; better: deepspeed.config={best.layout}"


if __name__ == "__main__":
    sys.exit(main())

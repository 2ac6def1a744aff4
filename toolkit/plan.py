# PYTHON_ARGCOMPLETE_OK
"""What a recipe will need on a cluster, before anything waits in a queue.

python -m toolkit.plan RECIPE [--nodes N] [--gpus-per-node 8] [--gpu h100] [key=value ...]
"""

import argparse
import sys
from collections.abc import Mapping

from toolkit.base.console import say, say_lines
from toolkit.base.errors import BadInput
from toolkit.command_line.completion import answer_shell
from toolkit.command_line.door import Parser, add_recipe, guarded
from toolkit.runs.estimate import (
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
from toolkit.settings.pipelines import resolve
from toolkit.settings.schema import PipelineRecipe, TrainingRecipe
from toolkit.settings.training_checks import fit_to_ranks

GBIT = 1e9 / 8
KINDS = ("pipeline", "mntp", "simcse", "supervised")


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.plan`."""
    parser = Parser(
        prog="python -m toolkit.plan",
        description="Estimate the memory per GPU, the time and the network that training stages "
        "will need (what ZeRO partitions is exact). A step takes the longest of computing, the "
        "host's work and the traffic that overlaps them, plus the traffic that all ranks wait for.",
        epilog="example:\n  python -m toolkit.plan llm2vec_mistral_7b --nodes 2 --gpu a100\n\n"
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
    answer_shell(parser, kinds=KINDS)
    arguments = parser.parse_intermixed_args(argv)
    return guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    """Print the estimate of every training stage. Raises `BadInput` where there can be none."""
    cluster = cluster_of(arguments)
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


def describe(name: str, recipe: TrainingRecipe, *, shape: Shape, cluster: Cluster) -> str:
    """A stage's estimate as text: steps, time, memory by layout, and advice."""
    asked = need(shape, recipe, layout_name=recipe.deepspeed.config, cluster=cluster)
    best = recommend(shape, recipe, cluster=cluster)
    lines = [
        f"{name}: {recipe.train.steps} steps of {recipe.train.global_batch_rows} rows, "
        f"{_time(asked.hours)} at {asked.tokens_per_s:,.0f} tokens/s (full rows)",
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
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.2g} min"


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

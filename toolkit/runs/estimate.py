"""What a training run will need: memory per GPU, time, network. Arithmetic on shapes.

Knows shapes and bytes. Refuses to load anything: it runs on a login node, without torch.

What ZeRO partitions is exact (tested against its partitions); activations and speed are estimates.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

from toolkit.base.errors import BadInput, did_you_mean
from toolkit.runs.shapes import Shape
from toolkit.settings.layouts import Layout, read_layout
from toolkit.settings.schema import GradedRecipe, MntpRecipe, SimcseRecipe, TrainingRecipe
from toolkit.settings.training_checks import batch_split

GIB = 2**30
BYTES = {"fp32": 4, "bf16": 2}
# CUDA context, NCCL's buffers, and what the allocator cannot use.
OVERHEAD_BYTES = 3 * GIB
CHUNK_BYTES = 3 * 4 * 2**22  # three fp32 copies of the logits that the loss takes at once
# Seconds in which the host starts the operations of one layer with LoRA, forward and backward, on
# one slow core, and how many times longer the other cases take (2026-11; 32 layers of a small
# model). Without these the GPU has nothing to compute, however few tokens there are.
HOST_S = 0.006
GATHERED, WITHOUT_LORA, RECOMPUTED, FORWARD_ALONE = 4.4, 0.4, 2.0, 0.5


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Memory in bytes, dense bf16 peak in FLOP/s, and all-gather bytes/s within a node."""

    memory: float
    peak: float
    gather: float


# Data sheets; the last column is what an all-gather over NVLink (or PCIe) reaches of them.
GPUS = {
    "a10g": Gpu(24e9, 70e12, 20e9),
    "a100-40": Gpu(40e9, 312e12, 230e9),
    "a100": Gpu(80e9, 312e12, 230e9),
    "l40s": Gpu(48e9, 362e12, 20e9),
    "h100": Gpu(80e9, 989e12, 340e9),
    "h200": Gpu(141e9, 989e12, 340e9),
    "b200": Gpu(180e9, 2250e12, 680e9),
}

FP8_GPUS = frozenset({"h100", "h200", "b200"})  # with products of 8-bit floating-point numbers


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The hardware of a run. `network` is the bytes/s that a node exchanges with the others,
    `efficiency` the fraction of the GPU's peak that training reaches."""

    nodes: int
    gpus_per_node: int
    gpu: Gpu
    network: float
    efficiency: float = 0.45

    @property
    def world(self) -> int:
        """The number of GPUs of all nodes."""
        return self.nodes * self.gpus_per_node


@dataclasses.dataclass(frozen=True)
class Need:
    """What a run needs under a layout: bytes per GPU by item (`memory`), bytes of each node's own
    memory (`host`), tokens per GPU of a micro-batch (`tokens`), and seconds per step in which the
    GPUs compute (`compute_s`), their hosts start operations (`host_s`) and the network is busy
    (`hidden_s`) at the same time, and in which the GPUs wait for the network (`exposed_s`)."""

    layout: str
    memory: Mapping[str, float]
    host: float
    steps: int
    tokens: float
    tokens_per_step: float
    compute_s: float
    host_s: float
    hidden_s: float
    exposed_s: float

    @property
    def step_s(self) -> float:
        """Seconds per step: the longest of computing, the host's work and overlapping traffic, and
        then the traffic that all wait for."""
        return max(self.compute_s, self.host_s, self.hidden_s) + self.exposed_s

    @property
    def is_host_bound(self) -> bool:
        """Whether GPUs and network wait for the hosts."""
        return self.host_s > max(self.compute_s, self.hidden_s)

    @property
    def hours(self) -> float:
        """Hours that all steps take together."""
        return self.steps * self.step_s / 3600

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of all GPUs together."""
        return self.tokens_per_step / self.step_s

    @property
    def total(self) -> float:
        """Bytes that each GPU holds."""
        return sum(self.memory.values())

    def fits(self, gpu: Gpu) -> bool:
        """Whether a GPU holds it with a tenth of its memory to spare."""
        return self.total <= 0.9 * gpu.memory


def partitioned(
    shape: Shape, recipe: TrainingRecipe, *, layout: Layout, world: int, per_node: int
) -> dict[str, float]:
    """Bytes per rank of what ZeRO partitions: weights, gradients, AdamW's state.

    Rajbhandari et al. 2020 (ZeRO), section 5; also for a frozen model with adapters.
    """
    stage, width = layout.stage, BYTES[recipe.model.dtype]
    head = isinstance(recipe, MntpRecipe)
    lora = recipe.model.lora
    frozen = shape.weights(head=head) if lora else 0
    trained = shape.adapters(lora) if lora else shape.weights(head=head)
    saved = shape.layers * shape.layer if recipe.model.fp8 else 0  # a byte of each
    weights = ((frozen + trained) * width - saved) / (world if layout.shares_weights else 1)
    if layout.shares_weights and layout.has_node_copy:
        weights += (frozen + trained) * width / per_node
    accumulated = layout.gradients or recipe.model.dtype
    on_cpu = layout.optimizer_on_cpu
    share = trained / (world if stage >= 1 else 1)
    return {
        "weights": 0 if layout.weights_on_cpu else weights,
        "gradients": 0 if on_cpu else trained * BYTES[accumulated] / (world if stage >= 2 else 1),
        "fp32 masters": 0 if on_cpu or stage == 0 else share * 4,
        "AdamW moments": 0 if on_cpu else share * 8,
    }


def offloaded(shape: Shape, recipe: TrainingRecipe, *, layout: Layout, nodes: int) -> float:
    """Bytes per node that are offloaded to its own memory: weights, and the optimizer's share, 16
    bytes per trained parameter (fp32 master, gradient and AdamW's two moments)."""
    lora, head = recipe.model.lora, isinstance(recipe, MntpRecipe)
    trained = shape.adapters(lora) if lora else shape.weights(head=head)
    held = trained + (shape.weights(head=head) if lora else 0)
    weights = held * BYTES[recipe.model.dtype] if layout.weights_on_cpu else 0
    return (weights + (16 * trained if layout.optimizer_on_cpu else 0)) / nodes


def need(shape: Shape, recipe: TrainingRecipe, *, layout_name: str, cluster: Cluster) -> Need:
    """What `recipe` needs under a layout. Raises `BadInput` when the ranks do not divide it."""
    layout = read_layout(layout_name)
    memory = partitioned(
        shape, recipe, layout=layout, world=cluster.world, per_node=cluster.gpus_per_node
    )
    width = BYTES[recipe.model.dtype]
    micro, accumulation = batch_split(recipe.train, world_size=cluster.world)
    # Texts per row: a block of MNTP, both views of SimCSE, a graded pair, or query, positive and
    # negative.
    two = isinstance(recipe, (SimcseRecipe, GradedRecipe))
    texts = 1 if isinstance(recipe, MntpRecipe) else 2 if two else 3
    tokens = micro * texts * recipe.data.max_tokens
    if budget := recipe.train.micro_batch_tokens:
        local = accumulation * tokens
        accumulation, tokens = math.ceil(local / budget), min(local, budget)
    if layout.shares_weights:
        memory["gathered layers"] = (2 * shape.layer + shape.vocab * shape.hidden) * width
    memory["activations"] = _activations(shape, recipe, tokens=tokens)
    if isinstance(recipe, MntpRecipe):
        logits = tokens * recipe.mntp.mask_probability * shape.vocab
        memory["logits"] = logits * width + CHUNK_BYTES
    memory["gradient buckets"] = 0 if layout.optimizer_on_cpu else layout.staged * width
    memory["overhead"] = OVERHEAD_BYTES
    cached = not isinstance(recipe, MntpRecipe) and accumulation > 1
    work = work_flops(shape, recipe, attended=recipe.data.max_tokens, cached=cached)
    step = recipe.train.global_batch_rows * texts * recipe.data.max_tokens
    passes = accumulation * (3 if cached else 2)
    hidden, exposed = traffic(
        shape, recipe, layout=layout, cluster=cluster, accumulation=accumulation, passes=passes
    )
    return Need(
        layout=layout_name,
        memory=memory,
        host=offloaded(shape, recipe, layout=layout, nodes=cluster.nodes),
        steps=recipe.train.steps,
        tokens=tokens,
        tokens_per_step=step,
        compute_s=step * work / (cluster.gpu.peak * cluster.efficiency * cluster.world),
        host_s=accumulation * host_seconds(shape, recipe, layout=layout, cached=cached),
        hidden_s=hidden,
        exposed_s=exposed,
    )


def host_seconds(shape: Shape, recipe: TrainingRecipe, *, layout: Layout, cached: bool) -> float:
    """Seconds in which the host starts all operations of a micro-batch. Stage 3 adds those that
    gather weights; `cached` is GradCache's first pass."""
    passes = (RECOMPUTED if recipe.model.activation_checkpointing else 1) + FORWARD_ALONE * cached
    layer = HOST_S * (1 if recipe.model.lora else WITHOUT_LORA)
    return shape.layers * layer * passes * (GATHERED if layout.shares_weights else 1)


def busy_rows(asked: Need, *, recipe: TrainingRecipe, cluster: Cluster) -> int | None:
    """The rows per GPU, doubled from those of a host-bound step in one micro-batch, from which on
    computing takes longer than the host's work. None where the GPUs are busy already, or where
    other micro-batches would help."""
    local = recipe.train.global_batch_rows // cluster.world
    if not asked.is_host_bound or asked.tokens * cluster.world < asked.tokens_per_step:
        return None
    return int(local * 2 ** math.ceil(math.log2(asked.host_s / asked.compute_s)))


def traffic(
    shape: Shape,
    recipe: TrainingRecipe,
    *,
    layout: Layout,
    cluster: Cluster,
    accumulation: int,
    passes: int,
) -> tuple[float, float]:
    """Seconds per step of traffic that overlaps computing, and of traffic that all ranks wait for.

    Rajbhandari et al. 2020 (ZeRO), section 7: a gather or a reduction of M bytes moves
    M (W - 1) / W through each rank, and through each node's network, since a ring crosses it once;
    the slower of the two counts. Stage 3 gathers all weights in each of `passes` (with hpZ backward
    passes gather within the node) and reduces gradients in each of `accumulation` micro-batches;
    stage 2 reduces as often, stages 0 and 1 once per step. This overlaps computing. After a step of
    stages 1 and 2 all ranks wait for the new weights. Offloading to a node's memory is left out.
    """
    world, width = cluster.world, BYTES[recipe.model.dtype]
    if world == 1:
        return 0.0, 0.0
    stage, head, lora = layout.stage, isinstance(recipe, MntpRecipe), recipe.model.lora
    trained = shape.adapters(lora) if lora else shape.weights(head=head)
    weights = shape.weights(head=head) + (trained if lora else 0)
    within_s = width * (world - 1) / world / cluster.gpu.gather  # per parameter
    across_s = (
        within_s
        if cluster.nodes == 1
        else max(within_s, width * (world - 1) / world / cluster.network)
    )
    if layout.shares_weights:
        near = accumulation if layout.has_node_copy else 0
        gathers_s = weights * ((passes - near) * across_s + near * within_s)
        return gathers_s + trained * accumulation * across_s, 0.0
    # Stage 0 reduces and gathers (an all-reduce); from stage 1 on each rank reduces its share only.
    reductions = {0: 2, 1: 1, 2: accumulation}[stage]
    return trained * reductions * across_s, trained * across_s if stage else 0.0


def _activations(shape: Shape, recipe: TrainingRecipe, *, tokens: int) -> float:
    """Bytes per rank of what the backward pass of a GPU needs of the decoder layers: the inputs of
    norms, attention and the feed-forward part, and the inputs of all maps that are trained; those
    of adapters after dropout, with a mask of a byte for each number. tests/benchmarks traces it.
    (liger-kernel needs a tenth less.)"""
    width, hidden = BYTES[recipe.model.dtype], shape.hidden
    after = ("o_proj", "down_proj")  # the sum of the states needs nothing of their outputs
    numbers = 2 * hidden + sum(
        rows if name in after else columns for name, (rows, columns) in shape.linear.items()
    )
    lora = recipe.model.lora
    if lora and lora.dropout:
        targets = [shape.linear[name] for name in lora.targets if name in shape.linear]
        inputs = sum(rows for rows, _ in targets) * (width + 1)
    else:
        inputs = (2 * hidden + shape.linear["down_proj"][0]) * width
    layer = tokens * (numbers * width + inputs)
    if recipe.model.activation_checkpointing:
        # Every layer keeps its input; one layer at a time is computed again, in full.
        return float(shape.layers * tokens * hidden * width + layer)
    return float(shape.layers * layer)


def forward_flops(shape: Shape, *, attended: float) -> float:
    """FLOPs per token of a forward pass without the head: 2N for the N weights that a token passes,
    and 4 x layers x width x `attended` for the tokens that it attends to. The width is that of all
    heads together, which need not be that of the states."""
    heads_width, _ = shape.linear["o_proj"]
    return 2 * shape.active + 4 * shape.layers * heads_width * attended


def flops(
    shape: Shape, recipe: TrainingRecipe, *, attended: float, cached: bool
) -> tuple[float, float]:
    """FLOPs per token: those of the model, and those of the hardware, which computes some twice.

    The backward pass takes as much as the forward pass (see `forward_flops`) through frozen maps
    and twice as much through trained ones. The head counts for masked tokens only. The hardware
    runs one more forward pass for activation checkpointing, and one more for GradCache's first
    pass (`cached`).
    """
    forward = forward_flops(shape, attended=attended)
    head = 0.0
    if isinstance(recipe, MntpRecipe):
        head = 2 * recipe.mntp.mask_probability * shape.vocab * shape.hidden
    model = (forward + head) * (2 if recipe.model.lora else 3)
    return model, model + forward * (recipe.model.activation_checkpointing + cached)


def work_flops(shape: Shape, recipe: TrainingRecipe, *, attended: float, cached: bool) -> float:
    """FLOPs per token that a GPU computes: those of the hardware by `flops`, and what its formula
    leaves out as the literature does. tests/benchmarks counts all operations and agrees.

    Attention itself has no weights, frozen or not: its backward pass has twice the products of the
    forward pass, and flash attention computes the scores again there (Dao et al. 2022). Adapters
    have products of their own, with trained weights.
    """
    _, work = flops(shape, recipe, attended=attended, cached=cached)
    product = 2 * shape.layers * shape.linear["o_proj"][0] * attended
    again = recipe.model.activation_checkpointing + cached
    if recipe.model.lora is None:
        return work + product
    return work + 3 * product + shape.adapters(recipe.model.lora) * (6 + 2 * again)


# Data sheets, dense bf16, of GPUs that the driver names with more words than `GPUS`.
PEAKS = {
    "h100 pcie": 756e12,
    "h100 nvl": 835e12,
    "h200 nvl": 835e12,
    "gh200": 989e12,
    "gb200": 2500e12,
    "h800": 989e12,
    "h20": 148e12,
    "a800": 312e12,
    "l40": 181e12,
    "l4": 121e12,
    "a10": 125e12,
}


def peak_of(device_name: str) -> float | None:
    """The dense bf16 peak in FLOP/s of a GPU by its driver's name for it; None if it is not
    known."""
    words = set(re.split(r"[^a-z0-9]+", device_name.lower()))
    known = {**PEAKS, **{name.partition("-")[0]: gpu.peak for name, gpu in GPUS.items()}}
    return next((peak for name, peak in known.items() if words.issuperset(name.split())), None)


def gpu_of(name: str) -> Gpu:
    """The GPU of that name; `BadInput` lists the known ones."""
    if name not in GPUS:
        near = did_you_mean(name, GPUS)
        raise BadInput(f"--gpu {name}: not known; valid: {', '.join(GPUS)}{near}")
    return GPUS[name]


def faster(
    shape: Shape, recipe: TrainingRecipe, *, asked: Need, cluster: Cluster
) -> list[tuple[str, Need]]:
    """Overrides that fit and would save at least a twentieth of the time, with what the recipe then
    needs; the fastest first. Each is a single change, as it is written on the command line."""
    tries = [(f"deepspeed.config={name}", recipe, name) for name in ("zero2", "zero3_hpz", "zero3")]
    if recipe.model.activation_checkpointing:
        model = recipe.model.model_copy(update={"activation_checkpointing": False})
        other = recipe.model_copy(update={"model": model})
        tries.append(("model.activation_checkpointing=false", other, asked.layout))
    key, most = "micro_batch_rows", recipe.train.global_batch_rows // cluster.world
    if recipe.train.micro_batch_tokens:
        key, most = "micro_batch_tokens", math.ceil(asked.tokens_per_step / cluster.world)
    size = getattr(recipe.train, key)
    while size < most:
        size = min(2 * size, most)
        train = recipe.train.model_copy(update={key: size})
        other = recipe.model_copy(update={"train": train})
        tries.append((f"train.{key}={size}", other, asked.layout))
    needs = [
        (what, need(shape, other, layout_name=name, cluster=cluster)) for what, other, name in tries
    ]
    better = [it for it in needs if it[1].fits(cluster.gpu) and it[1].hours < 0.95 * asked.hours]
    return sorted(better, key=lambda it: it[1].hours)


def recommend(shape: Shape, recipe: TrainingRecipe, *, cluster: Cluster) -> Need | None:
    """The first layout that fits, tried from the least traffic to the most; None if none fits."""
    names = ["zero2", "zero3_hpz" if cluster.nodes > 1 else "zero3", "zero3", "zero3_offload"]
    needs = (need(shape, recipe, layout_name=name, cluster=cluster) for name in names)
    return next((candidate for candidate in needs if candidate.fits(cluster.gpu)), None)

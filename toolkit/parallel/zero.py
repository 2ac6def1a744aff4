"""DeepSpeed ZeRO: the only importer of deepspeed.

Knows engines, partitions and the full values behind them. Refuses to know what is trained and how
a checkpoint is laid out. DeepSpeed is imported inside functions, because importing it takes seconds
and prints lines.
"""

import contextlib
import dataclasses
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from toolkit.base.errors import BadInput
from toolkit.parallel import comm
from toolkit.settings.layouts import Layout

MOMENTS = ("exp_avg", "exp_avg_sq")
FP32_NAMES = ("fp32", "float32", "torch.float32", "float")  # as DeepSpeed reads them


class Engine(Protocol):
    """A model that all ranks train together, with what other modules may use of it. It is called
    like the model, on all ranks at the same time, because under ZeRO-3 no rank can run even a part
    of the model alone. Everything else is done by the functions of this module."""

    module: Any  # the model; its weights may be partitions

    def __call__(self, **arguments: Any) -> Any:
        """The output of the model."""

    def train(self) -> object:
        """Turn dropout on from now on."""

    def eval(self) -> object:
        """Turn dropout off from now on."""


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """What an engine is made with: the layout, the division of a batch, and the precision.

    Raises `BadInput` for bf16 under stage 0, which keeps no fp32 masters, and for settings with
    which DeepSpeed would choose an optimizer whose state we cannot restore.
    """

    layout: Layout
    micro_batch_rows: int
    accumulation: int
    world_size: int
    ranks_per_node: int
    clip_norm: float
    bf16: bool

    def __post_init__(self) -> None:
        stage = self.layout.stage
        if stage == 0 and self.bf16:
            raise BadInput(
                "deepspeed.config: stage 0 keeps no fp32 masters of bf16 weights; "
                "use zero1, or model.dtype=fp32"
            )
        sums_in_fp32 = self.layout.gradients in FP32_NAMES
        if stage == 1 and self.bf16 and not self.layout.optimizer_on_cpu and sums_in_fp32:
            raise BadInput(
                "deepspeed.config: stage 1 with data_types.grad_accum_dtype=fp32 is an optimizer "
                "that cannot be restored; use zero2, or leave grad_accum_dtype out"
            )

    def keys(self) -> dict[str, Any]:
        """The settings in DeepSpeed's keys. All three batch numbers are given, so that DeepSpeed's
        own assertion verifies our division. A second copy of the weights (hpZ) is partitioned over
        the ranks of one node, whatever number the layout gives: over two nodes it would use the
        network, which it exists to avoid."""
        zero = dict(self.layout.keys["zero_optimization"])
        if self.layout.has_node_copy:
            zero["zero_hpz_partition_size"] = self.ranks_per_node
        return {
            **self.layout.keys,
            "zero_optimization": zero,
            "train_batch_size": self.micro_batch_rows * self.accumulation * self.world_size,
            "train_micro_batch_size_per_gpu": self.micro_batch_rows,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": self.clip_norm,
            "bf16": {"enabled": self.bf16, "check_grad_overflow": True},  # `step` counts on it
            "steps_per_print": 10**9,
            "zero_allow_untested_optimizer": True,
        }


@contextlib.contextmanager
def partitioned_loading(settings: EngineSettings) -> Iterator[None]:
    """While entered, `from_pretrained` builds a model in partitions, if the layout partitions the
    weights; otherwise does nothing."""
    if not settings.layout.shares_weights:
        yield
        return
    _prepare()
    from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

    keep_alive = HfDeepSpeedConfig(settings.keys())  # transformers holds only a weak reference
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del keep_alive


def start_engine(
    model: nn.Module, *, settings: EngineSettings, lr: float, weight_decay: float
) -> Engine:
    """Make a DeepSpeed engine that trains the trainable parameters with torch's AdamW."""
    deepspeed = _prepare()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=weight_decay)
    made: Engine
    made, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=settings.keys(), dist_init_required=False
    )
    return made


def _whole(engine: Engine) -> Any:
    """The engine with all methods of DeepSpeed, which `Engine` hides from other modules."""
    return engine


def set_rate(engine: Engine, *, lr: float) -> None:
    """Set the learning rate for the next `step`."""
    for group in _whole(engine).optimizer.param_groups:
        group["lr"] = lr


def backward(engine: Engine, loss: Tensor, *, is_last: bool) -> None:
    """Add the gradient of a micro-batch's loss to those of the earlier micro-batches of the step;
    `is_last`: this is the last one. `step` uses the MEAN of these sums over ranks."""
    whole = _whole(engine)
    whole.set_gradient_accumulation_boundary(is_last)
    whole.backward(loss, scale_wrt_gas=False)


def step(engine: Engine) -> tuple[bool, float]:
    """Take one optimizer step. Returns whether it was taken, and the gradient's norm before
    clipping.

    If the gradient of any rank is NaN or infinite, all ranks leave weights, moments and AdamW's
    step count as they are. DeepSpeed does this itself at every stage and precision except stage 0,
    where this function looks at the gradients, which every rank holds whole.
    """
    whole = _whole(engine)
    if whole.zero_optimization():
        whole.step()
        taken, norm = not whole.optimizer.overflow, whole.get_global_grad_norm() or 0.0
    else:
        gradients = [p.grad for p in trainable_parameters(engine).values() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        taken = math.isfinite(norm)
        if taken:
            whole.step()
        else:
            whole.zero_grad()
    return taken, float(norm) if taken else math.nan


def stop() -> None:
    """Destroy the process groups that DeepSpeed keeps, which the next engine would try to use."""
    deepspeed = sys.modules.get("deepspeed")  # None: never imported, so there are no groups
    if deepspeed and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()


def trainable_parameters(engine: Engine) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, in the model's order (partitioned under stage 3)."""
    return {n: p for n, p in engine.module.named_parameters() if p.requires_grad}


def full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape of a whole parameter, even if this rank holds only a partition of it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def value_at(
    engine: Engine, parameter: nn.Parameter, *, moment: str | None, owner: int
) -> Tensor | None:
    """The fp32 master of a parameter or, with `moment`, that AdamW moment of it (zeros before the
    first step that was taken), on the CPU of rank `owner`; None on the other ranks. It may share
    memory with the engine: copy it if it must outlive the next step. Collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    whole = _whole(engine)
    if moment is not None and not _has_moments(engine):
        return torch.zeros(full_shape(parameter)) if comm.rank() == owner else None
    if not whole.zero_optimization():
        value: Tensor | None = parameter
        if moment is not None:
            value = whole.optimizer.state[parameter][moment]
    elif whole.zero_optimization_partition_weights():
        return _gathered(parameter, moment=moment, owner=owner)
    elif moment is None:
        value = safe_get_full_fp32_param(parameter)
    else:
        value = safe_get_full_optimizer_state(parameter, moment)
    return _on_cpu(value, parameter) if comm.rank() == owner else None


def _has_moments(engine: Engine) -> bool:
    """Whether AdamW has its state, which it creates in the first step that is taken."""
    whole = _whole(engine)
    adamw = whole.optimizer.optimizer if whole.zero_optimization() else whole.optimizer
    return any(MOMENTS[0] in state for state in adamw.state.values())


def _gathered(parameter: Any, *, moment: str | None, owner: int) -> Tensor | None:
    """`value_at` for stage 3. DeepSpeed's own function would send the whole value to every rank;
    this one sends it to the owner only."""
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    if moment is None:
        part = safe_get_local_fp32_param(parameter)
    else:
        part = safe_get_local_optimizer_state(parameter, moment)
    parts = comm.gather_to(part.detach().flatten(), owner=owner)
    if parts is None:
        return None
    whole = torch.cat([one.cpu() for one in parts])  # with padding at the end
    return whole[: parameter.ds_numel].view(full_shape(parameter))


def full_gradient(parameter: nn.Parameter) -> Tensor:
    """A copy of the reduced gradient on the CPU; call it between backward and step. Collective."""
    from deepspeed.utils import safe_get_full_grad

    return _on_cpu(safe_get_full_grad(parameter), parameter).clone()


@torch.no_grad()
def write_weights(model: nn.Module, *, values: Mapping[str, Tensor]) -> None:
    """Copy values into the named parameters, partitioned or not, BEFORE the engine is made.

    The engine makes its fp32 masters from the weights that it finds.
    """
    import deepspeed

    for name, parameter in model.named_parameters():
        if name not in values:
            continue
        if hasattr(parameter, "ds_id"):
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if comm.rank() == 0:  # DeepSpeed sends the value of rank 0 to the others
                    parameter.copy_(values[name].to(parameter.dtype))
        else:
            parameter.copy_(values[name].to(parameter.dtype))


@torch.no_grad()
def write_optimizer(
    engine: Engine, *, masters: Mapping[str, Tensor], moments: Mapping[str, Any], step: int
) -> None:
    """Restore fp32 masters, AdamW moments and step count into a fresh engine.

    `masters[name]` and `moments[moment][name]` are full tensors by parameter name.
    """
    whole = _whole(engine)
    zero = whole.optimizer
    if not whole.zero_optimization():  # the weights are the masters; `write_weights` wrote them
        for name, parameter in trainable_parameters(engine).items():
            zero.state[parameter] = {
                "step": torch.tensor(float(step)),
                **{moment: moments[moment][name].to(parameter, copy=True) for moment in MOMENTS},
            }
        return
    stage3 = whole.zero_optimization_partition_weights()
    flats = zero.fp32_partitioned_groups_flat if stage3 else zero.single_partition_of_fp32_groups
    for flat in flats:
        # torch's AdamW creates its state in the first step, so a fresh engine has none yet.
        zero.optimizer.state[flat] = {
            "step": torch.tensor(float(step)),
            **{moment: torch.zeros_like(flat) for moment in MOMENTS},
        }
    if not stage3:
        zero._lazy_init_hp_params_optimizer_state()
    for name, parameter in trainable_parameters(engine).items():
        _set_state(parameter, value=masters[name], moment=None, stage3=stage3)
        for moment in MOMENTS:
            _set_state(parameter, value=moments[moment][name], moment=moment, stage3=stage3)


def _set_state(parameter: Any, *, value: Tensor, moment: str | None, stage3: bool) -> None:
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if stage3:
        # DeepSpeed's setter of full values fails under stage 3 if the number of ranks does not
        # divide the parameter's size, because it adds no padding. So each rank sets its own part,
        # padded as DeepSpeed pads it.
        size = parameter.ds_tensor.numel()
        part = value.flatten()[size * comm.rank() : size * (comm.rank() + 1)]
        value = torch.nn.functional.pad(part, (0, size - part.numel()))
    value = value.to(parameter.device)
    if moment is None:
        (safe_set_local_fp32_param if stage3 else safe_set_full_fp32_param)(parameter, value)
    elif stage3:
        safe_set_local_optimizer_state(parameter, value, moment)
    else:
        safe_set_full_optimizer_state(parameter, value, moment)


def _on_cpu(value: Tensor | None, parameter: nn.Parameter) -> Tensor:
    assert value is not None, "DeepSpeed holds no such state: asked before the first step?"
    return value.detach().float().cpu().reshape(full_shape(parameter))


def _prepare() -> Any:
    """Import DeepSpeed, silence it, and give it our process group; without a process group it would
    take this process for the only one."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # torch 2.13 warns on every collective that DeepSpeed starts: thousands of equal lines.
    warnings.filterwarnings("ignore", module="torch.distributed.*")
    import deepspeed

    # DeepSpeed's shared-memory all-reduce for CPU inference is compiled at its first use, if there
    # is a compiler, and is wrong if several nodes of a test cluster share one machine. gloo does
    # the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)
    return deepspeed

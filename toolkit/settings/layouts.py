"""DeepSpeed layouts: how memory and communication are laid out, read from `ds_configs/`.

Knows DeepSpeed's keys, and which of them belong to the recipe, so that a layout may not set them.
Only `parallel` uses these keys; everybody else reads the fields of `Layout`. No torch.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.base.errors import BadInput, did_you_mean
from toolkit.settings.catalogue import shipped
from toolkit.settings.recipes import flatten

DEEPSPEED_DIR = shipped("ds_configs")
DEEPSPEEDS_BUCKET = 500_000_000  # gradients that it sends at once, unless the layout says otherwise


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a layout means. `stage` is that of ZeRO (Rajbhandari et al. 2020): from stage 1 on the
    ranks partition AdamW's state, from 2 on the gradients too, from 3 on the weights too.
    `has_node_copy`: the ranks of each node also partition a second copy of the weights (hpZ).
    `gradients` is the type in which gradients are summed, None for the model's own type.
    `staged` is the number of gradients for which DeepSpeed has buffers, whatever is trained. `keys`
    is the content of the file, for DeepSpeed."""

    stage: int
    has_node_copy: bool
    weights_on_cpu: bool
    optimizer_on_cpu: bool
    gradients: str | None
    staged: int
    keys: Mapping[str, Any]

    @property
    def shares_weights(self) -> bool:
        """Whether each rank holds only a part of the weights."""
        return self.stage == 3


def read_layout(name: str) -> Layout:
    """The layout that `deepspeed.config` names or gives as a file. Raises `BadInput` for a key that
    belongs to the recipe, for "auto", and for a ZeRO stage other than 0 to 3."""
    path = DEEPSPEED_DIR / f"{name.removesuffix('.json')}.json"
    if "/" in name or not path.is_file():
        path = Path(name)
    if not path.is_file():
        valid = sorted(p.stem for p in DEEPSPEED_DIR.glob("*.json"))
        problem = f"{name!r} is neither a file nor one of {', '.join(valid)}"
        raise BadInput(f"deepspeed.config: {problem}{did_you_mean(name, valid)}")
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: is not valid JSON ({error})") from error
    _check_keys(keys, path=path)
    zero = keys.get("zero_optimization", {})
    stage = zero.get("stage")
    if stage not in (0, 1, 2, 3):
        raise BadInput(f"deepspeed.config: zero_optimization.stage is {stage!r}; valid: 0, 1, 2, 3")
    return Layout(
        stage=stage,
        has_node_copy=zero.get("zero_hpz_partition_size", 1) > 1,
        weights_on_cpu=zero.get("offload_param", {}).get("device") == "cpu",
        optimizer_on_cpu=zero.get("offload_optimizer", {}).get("device") == "cpu",
        gradients=keys.get("data_types", {}).get("grad_accum_dtype"),
        staged=_staged(zero, stage=stage),
        keys=keys,
    )


def _staged(zero: Mapping[str, Any], *, stage: int) -> int:
    if stage == 0:
        return 0
    twice = stage < 3 and zero.get("overlap_comm", False)
    return int(zero.get("reduce_bucket_size", DEEPSPEEDS_BUCKET)) * (2 if twice else 1)


def _check_keys(keys: Mapping[str, Any], *, path: Path) -> None:
    # If both the recipe and the layout gave such a value, one of the two would be ignored.
    owned = {
        "train_batch_size": "train.global_batch_rows",
        "train_micro_batch_size_per_gpu": "train.micro_batch_rows",
        "gradient_accumulation_steps": "train.global_batch_rows",
        "gradient_clipping": "train.clip_norm",
        "bf16": "model.dtype",
        "fp16": "model.dtype",
        "optimizer": "train.lr",
        "scheduler": "train.horizon_steps",
    }
    for key, owner in owned.items():
        if key in keys:
            raise BadInput(f"{path}: {key} belongs to the recipe ({owner}), not to the layout")
    for key, value in flatten(keys).items():
        if value == "auto":
            problem = '"auto", which DeepSpeed drops silently: write a value'
            raise BadInput(f"{path}: {key} is {problem}")

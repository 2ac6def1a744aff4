"""DeepSpeed layouts: how memory and communication are laid out, read from `ds_configs/`.

Knows DeepSpeed's keys, those of the recipe among them, which a layout may not have. Everybody but
`parallel` is told in plain words what a layout means (`Layout`). No torch.
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


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a layout means. `stage` is ZeRO's (Rajbhandari et al. 2020): from 1 on the ranks share
    AdamW's state, from 2 on the gradients, from 3 on the weights. `has_node_copy`: each node shares
    a second copy of the weights (hpZ). `gradients` is the type that they are summed in, None the
    model's own. `keys` are the file's, for DeepSpeed."""

    stage: int
    has_node_copy: bool
    weights_on_cpu: bool
    optimizer_on_cpu: bool
    gradients: str | None
    keys: Mapping[str, Any]

    @property
    def shares_weights(self) -> bool:
        """Whether a rank holds a part of the weights only."""
        return self.stage == 3


def read_layout(name: str) -> Layout:
    """The layout behind `deepspeed.config`, a name or a file. Raises `BadInput` for what recipes
    own, for "auto", and for a ZeRO stage other than 0 to 3."""
    path = DEEPSPEED_DIR / f"{name.removesuffix('.json')}.json"
    if "/" in name or not path.is_file():
        path = Path(name)
    if not path.is_file():
        valid = sorted(p.stem for p in DEEPSPEED_DIR.glob("*.json"))
        told = f"{name!r} is neither a file nor one of {', '.join(valid)}"
        raise BadInput(f"deepspeed.config: {told}{did_you_mean(name, valid)}")
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
        keys=keys,
    )


def _check_keys(keys: Mapping[str, Any], *, path: Path) -> None:
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
            told = '"auto", which DeepSpeed drops silently: write a value'
            raise BadInput(f"{path}: {key} is {told}")

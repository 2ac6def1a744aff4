"""DeepSpeed layouts: how memory and communication are laid out, read from `ds_configs/`.

Knows which keys a layout may not have, since the recipe owns them. No torch.
"""

import json
from pathlib import Path
from typing import Any

from toolkit.base.errors import BadInput, did_you_mean
from toolkit.settings.catalogue import shipped
from toolkit.settings.recipes import flatten

DEEPSPEED_DIR = shipped("ds_configs")


def deepspeed_layout(name: str) -> dict[str, Any]:
    """The DeepSpeed JSON behind `deepspeed.config`; refuses what recipes own and "auto"."""
    path = DEEPSPEED_DIR / f"{name.removesuffix('.json')}.json"
    if "/" in name or not path.is_file():
        path = Path(name)
    if not path.is_file():
        valid = sorted(p.stem for p in DEEPSPEED_DIR.glob("*.json"))
        told = f"{name!r} is neither a file nor one of {', '.join(valid)}"
        raise BadInput(f"deepspeed.config: {told}{did_you_mean(name, valid)}")
    try:
        layout = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: is not valid JSON ({error})") from error
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
        if key in layout:
            raise BadInput(f"{path}: {key} belongs to the recipe ({owner}), not to the layout")
    for key, value in flatten(layout).items():
        if value == "auto":
            told = '"auto", which DeepSpeed drops silently: write a value'
            raise BadInput(f"{path}: {key} is {told}")
    return dict(layout)

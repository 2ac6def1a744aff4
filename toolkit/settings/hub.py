"""Which files of a model are on this machine, in a folder or the hub's cache. No network, no torch.

Knows the files that a model consists of. Refuses to fetch anything.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from toolkit.base.files import read_json
from toolkit.settings.model_source import ADAPTER_CONFIG, HUB_NAME

INDEX = "model.safetensors.index.json"


def is_offline(environ: Mapping[str, str], *, default: str = "0") -> bool:
    """Whether a process with this environment fetches nothing from the hub. `default` is the value
    of HF_HUB_OFFLINE if the environment does not set it."""
    return environ.get("HF_HUB_OFFLINE", default).upper() in ("1", "ON", "YES", "TRUE")


def cached_file(model: str, name: str) -> Path | None:
    """The path of a model's file, in its folder or (for a hub name) in this machine's cache; None
    if it is not on this machine."""
    if os.path.isdir(model):
        path = Path(model) / name
        return path if path.is_file() else None
    if not HUB_NAME.fullmatch(model):
        return None  # a folder that is not there
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model, name)
    return Path(cached) if isinstance(cached, str) else None


def not_here(model: str) -> str:
    """What is missing on this machine of a model, or of the base that an adapter names, as a
    clause for a message; empty if nothing is."""
    config = cached_file(model, "config.json")
    adapter = cached_file(model, ADAPTER_CONFIG)
    if config is None and adapter is None:
        where = "in this machine's hub cache" if HUB_NAME.fullmatch(model) else "there"
        return f"{model} is not {where}"
    # An adapter has only its own weights; everything else is in its base, which may be an adapter.
    if config is None and adapter is not None:
        base = read_json(adapter).get("base_model_name_or_path") or ""
        if cached_file(model, "adapter_model.safetensors") is None:
            return f"{model} is not whole here (no adapter_model.safetensors)"
        return not_here(base) if base and base != model else ""
    assert config is not None
    index = config.parent / INDEX
    if index.is_file():
        files = sorted(set(read_json(index)["weight_map"].values()))
        missing = [name for name in files if not (config.parent / name).is_file()]
    else:
        missing = [] if any(config.parent.glob("*.safetensors")) else ["*.safetensors"]
    return f"{model} is not whole here (no {missing[0]})" if missing else ""

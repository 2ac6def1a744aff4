"""Merged encoders as folders that others load: the files around the weights, and where they are
from.

Knows model folders and what was merged. Refuses to know how tensors are merged (`model.merging`).
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.base.console import say
from toolkit.base.errors import BadInput
from toolkit.base.files import (
    committed_directory,
    is_committed,
    read_json,
    remove_temporaries,
    write_json,
)
from toolkit.base.layout import CARD_FILE, COMMIT_MARKER, MERGED_FILE, ORIGIN_FILE
from toolkit.base.sealed import content_digest
from toolkit.cluster.preempt import StopSignal
from toolkit.cluster.topology import detect
from toolkit.model.adapters import Chain, chain_of
from toolkit.model.alike import check_alike, rules_of
from toolkit.model.backbone import inner_class, load_config
from toolkit.model.merging import Blend, ChainWeights, write_merged
from toolkit.model.modules import MODULES_FILE
from toolkit.model.tokenizer import load_tokenizer
from toolkit.model.vector_rules import PLAIN_RULES, VectorRules
from toolkit.model.weights import base_folder, write_encoder_files
from toolkit.settings.merge_schema import MergeRecipe, check_merge
from toolkit.training.card import MERGE, CardFacts, public_name
from toolkit.training.export import max_tokens_of, seal, stages_of_chain, stored_dtype

OLD_S = 3600.0  # a temporary folder of another host, not written to for so long, is abandoned
DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16"}
# What a model folder has besides what its vectors depend on.
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_NOT_COPIED = (ORIGIN_FILE, CARD_FILE, COMMIT_MARKER, ".gitattributes")


def run(recipe: MergeRecipe, *, environ: Mapping[str, str]) -> None:
    """Write every encoder that is not there yet, then merged.json. Of several ranks the first does
    it all. Raises `BadInput` as `merge_all`."""
    topology = detect(environ)
    if topology.rank:
        return
    with StopSignal(environ) as stop:
        for made in merge_all(recipe):
            say(f"merge: {made}")
            if stop.received:
                say("merge: told to stop; the same command goes on")
                stop.leave(environ, leads=True)
    content = {"method": recipe.method, "models": recipe.models, "merges": recipe.merges()}
    write_json(Path(recipe.output_dir) / MERGED_FILE, content)


def merge_all(recipe: MergeRecipe) -> Iterator[str]:
    """Make the encoders of a recipe one after another, each all or nothing; yields a line for each.
    One that is there already is kept.

    Raises `BadInput`, before anything is written, for settings that do not fit, models that are not
    alike, and an output that is there with other settings or content.
    """
    check_merge(recipe)
    output = Path(recipe.output_dir)
    if output.exists() and not output.is_dir():
        raise BadInput(f"output_dir={output}: is a file; choose a directory")
    if is_committed(output):
        raise BadInput(f"output_dir={output}: is an encoder itself; choose another directory")
    chains = {name: chain_of(model) for name, model in recipe.models.items()}
    base = None if recipe.base is None else chain_of(recipe.base)
    check_alike(chains, base=base)
    first = next(iter(chains.values()))
    rules = rules_of(first)
    _check_side_files(first, rules=rules)
    records = _records(recipe, chains=chains, base=base)
    there = [folder for folder, record in records.items() if _is_there(output / folder, record)]
    weights = [ChainWeights.of(chain) for chain in chains.values()]
    base_weights = None if base is None else ChainWeights.of(base)
    for folder, record in records.items():
        out = output / folder
        if folder in there:
            yield f"{out} is there"
            continue
        remove_temporaries(output, folder, old_s=OLD_S)
        with committed_directory(out) as merged:
            blend = Blend(recipe.method, recipe.merges()[folder], density=recipe.density)
            write_merged(weights, out=merged, dtype=record["dtype"], blend=blend, base=base_weights)
            _write_side_files(merged, first=first, dtype=record["dtype"])
            seal(
                merged,
                name=f"{output.name}/{folder}" if recipe.ratios else folder,
                origin={"kind": MERGE, "step": 0, MERGE: record},
                facts=_facts(first, record=record, rules=rules),
            )
            if rules_of(chain_of(str(merged))) != rules:
                raise BadInput(
                    f"{out}: its files would not say how its vectors are made; not merged"
                )
        yield f"{_told(record)} is in {out}"


def _records(
    recipe: MergeRecipe, *, chains: Mapping[str, Chain], base: Chain | None
) -> dict[str, dict[str, Any]]:
    """What each encoder is merged from, by its folder. All models are read, for their digests."""
    first = next(iter(chains.values()))
    parts = [
        {
            "name": name,
            "digest": chain.digest(),
            "stages": ", ".join(str(stage["kind"]) for stage in stages_of_chain(chain)),
        }
        for name, chain in chains.items()
    ]
    shared = {
        "method": recipe.method,
        "density": recipe.density,
        "dtype": recipe.dtype or stored_dtype(load_config(first.base)),
        "base": base and {"name": public_name(base.base.reference), "digest": base.digest()},
    }
    return {
        folder: {
            **shared,
            "models": [
                {**part, "weight": weight} for part, weight in zip(parts, weights, strict=True)
            ],
        }
        for folder, weights in recipe.merges().items()
    }


def _is_there(out: Path, record: Mapping[str, Any]) -> bool:
    """Whether the encoder has been made. Raises `BadInput` if other things are in its place."""
    if not is_committed(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise BadInput(f"{out}: exists already, and is no whole encoder; choose another")
        return False
    origin = read_json(out / ORIGIN_FILE) if (out / ORIGIN_FILE).is_file() else None
    if not isinstance(origin, dict) or MERGE not in origin:
        raise BadInput(f"{out}: is there already, and was not merged; choose another directory")
    if origin.pop("digest", None) != content_digest(origin):
        raise BadInput(f"{out / ORIGIN_FILE}: is damaged (its digest differs); remove {out} first")
    found = origin[MERGE]
    both = _decisive(found), _decisive(record)
    for key, value in both[1].items():
        if both[0].get(key) != value:
            raise BadInput(
                f"{out}: is there already, merged with other settings: {key} is "
                f"{both[0].get(key)!r} there and {value!r} here; choose another directory"
            )
    return True


def _decisive(record: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the weights of a merge; names do not."""
    parts = record["models"]
    return {
        **{key: record[key] for key in ("method", "density", "dtype")},
        "weights": [part["weight"] for part in parts],
        "models": [part["digest"] for part in parts],
        "base": record["base"] and record["base"]["digest"],
    }


def _facts(first: Chain, *, record: Mapping[str, Any], rules: VectorRules) -> CardFacts:
    config = load_config(first.base)
    stages = stages_of_chain(first)
    base = stages[0]["base"] if stages else public_name(first.base.reference)
    names = " + ".join(part["name"] for part in record["models"])
    merged = {"kind": MERGE, "base": names, "data": _told(record)}
    return CardFacts(
        form="merged",
        base=base,
        stages=[*stages, merged],
        width=config.hidden_size,
        max_tokens=max_tokens_of(config),
        instruction_format=first.instruction_format(),
        merge=record,
        pooled_by=() if rules == PLAIN_RULES else rules.modes,
    )


def _told(record: Mapping[str, Any]) -> str:
    parts = [f"{part['weight']:g} {part['name']}" for part in record["models"]]
    return f"{record['method']} merge of {' + '.join(parts)}"


def _check_side_files(first: Chain, *, rules: VectorRules) -> None:
    """Refuse a first model whose files do not say how its vectors are made, where others than those
    of a plain decoder are."""
    declares = (base_folder(first.base) / MODULES_FILE).is_file()
    if rules != PLAIN_RULES and (first.folders or not declares):
        raise BadInput(
            f"{first.base.reference}: its vectors are not those of a plain decoder, and an adapter "
            "stands on it; export it with its adapters first"
        )


def _write_side_files(out: Path, *, first: Chain, dtype: str) -> None:
    """Write everything but the weights: what the first model has, or what an export of it would."""
    folder = base_folder(first.base)
    if first.folders or not (folder / MODULES_FILE).is_file():
        config, tokenizer = load_config(first.base), load_tokenizer(first.tokenizer)
        write_encoder_files(
            out,
            config=config,
            tokenizer=tokenizer,
            max_tokens=max_tokens_of(config),
            dtype=dtype,
        )
        return
    modules = {folder / module["path"] for module in read_json(folder / MODULES_FILE)}
    for place in sorted(modules):
        target = out / place.relative_to(folder)
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(place.iterdir()):
            # The weights of this folder are those that were merged; a module after it has its own.
            is_weights = file.suffix in _WEIGHT_SUFFIXES or file.name.endswith(".index.json")
            left_out = file.name in _NOT_COPIED or (place == folder and is_weights)
            if file.is_file() and not left_out:
                shutil.copyfile(file, target / file.name)
    config_file = out / "config.json"
    settings = read_json(config_file)
    settings.pop("torch_dtype", None)
    if inner := inner_class(load_config(first.base)):
        settings["architectures"] = [inner.__name__]
    write_json(config_file, {**settings, "dtype": DTYPE_NAMES[dtype]})

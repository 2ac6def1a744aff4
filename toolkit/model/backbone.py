"""Loading a decoder so that it attends in both directions, with or without LoRA.

Knows transformers and peft. Refuses to know ranks: under ZeRO-3 the same calls build a partitioned
model, because the caller makes them inside a DeepSpeed context.
"""

import contextlib
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging
from typing_extensions import TypedDict

from toolkit.base.documents import FileName, checked
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json
from toolkit.base.tensor_header import read_header
from toolkit.model.attention import register
from toolkit.model.attention_kernels import PACKED, check_torch
from toolkit.model.dropout import Dropout
from toolkit.model.tokenizer import AGAIN, first_line
from toolkit.settings.model_schema import Attention, Lora
from toolkit.settings.model_source import ModelSource

_OTHER_SHAPE = "its weights have another shape than its config.json says"
UNREAD = "pooler."  # whose output nobody reads; many encoders are stored without it
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_config(
    source: ModelSource, *, causal: bool | None = False, attention_dropout: float | None = None
) -> PretrainedConfig:
    """The model's configuration, with bidirectional attention unless `causal`, and with
    `attention_dropout` if it is given. With `causal` None, config.json says what attention is.

    Every decoder of transformers >= 5.2 follows `config.is_causal`, in its mask and in its kernel.
    A model that brings its own code is refused: nothing in a model folder is executed.
    """
    try:
        config = AutoConfig.from_pretrained(source.name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise BadInput(
            f"model {source.reference!r}: cannot be read ({first_line(error)})"
        ) from error
    if getattr(config, "auto_map", None):
        raise BadInput(
            f"model {source.reference!r} wants to run code of its own (auto_map): refused"
        )
    if causal is not None:
        config.is_causal = causal
    config.use_cache = False
    if attention_dropout is not None and hasattr(config, "attention_dropout"):
        config.attention_dropout = attention_dropout
    elif attention_dropout:
        raise BadInput(f"model.attention_dropout: {config.model_type} has no such setting")
    return config


def attention_for(config: PretrainedConfig, *, asked: Attention) -> Attention:
    """`asked`, or what a model is padded with if it cannot be packed as `packed_attention` knows
    it. Raises `BadInput` for a model with a decoder beside its encoder."""
    if getattr(config, "is_encoder_decoder", False):
        raise BadInput(f"model_type {config.model_type!r}: has an encoder and a decoder: refused")
    model = inner_class(config)
    if asked != PACKED or model is None:
        return asked
    # Encoders count positions from elsewhere (RoBERTa), or include the end of a window in other
    # ways (ModernBERT), and so does Gemma 3 where its configuration makes it bidirectional.
    is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    by_flag = getattr(config, "use_bidirectional_attention", None) and not _is_bidirectional(config)
    if getattr(model, "_supports_attention_backend", False) and not (is_encoder or by_flag):
        return asked
    return "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"


def _is_bidirectional(config: PretrainedConfig) -> bool:
    return getattr(config, "is_causal", None) is False


def num_embeddings(config: PretrainedConfig) -> int | None:
    """The number of tokens for which the model has a vector; its tokenizer may have more."""
    number: int | None = getattr(config.get_text_config(), "vocab_size", None)
    return number


def check_positions(config: PretrainedConfig, *, max_tokens: int) -> None:
    """Raise `BadInput` if a token's position encoding would depend on the longest row of its batch:
    dynamic NTK and LongRoPE choose their frequencies by that row if it is longer than the original
    length of the model."""
    parameters = getattr(config, "rope_parameters", None) or {}
    every = [parameters, *(part for part in parameters.values() if isinstance(part, dict))]
    for rope in every:  # settings for all layers, or for each type of layer
        kind = rope.get("rope_type", "default")
        if kind not in ("dynamic", "longrope"):
            continue
        longest = rope.get("original_max_position_embeddings", config.max_position_embeddings)
        if max_tokens > longest:
            raise BadInput(
                f"max_tokens={max_tokens}: beyond {longest} tokens this model's {kind!r} positions "
                f"depend on the longest text of a batch; at most {longest}"
            )


def load_backbone(
    source: ModelSource,
    *,
    config: PretrainedConfig,
    head: bool,
    dtype: str,
    attention: str,
    device: torch.device | None = None,
) -> Any:
    """The pretrained model: with `head` the causal LM, without it the inner decoder.

    Weights go straight to `device` if one is given. If all eight ranks of a node loaded them into
    host memory first, that would need eight times the model's size. Raises `BadInput` when weights
    are missing, damaged or of another shape: transformers would fill them at random and go on.
    """
    register()
    check_torch(attention=attention, dtype=DTYPES[dtype], on_gpu=torch.cuda.is_available())
    factory = AutoModelForCausalLM if head else AutoModel
    reference, name = source.reference, source.name
    _check_files(name, config=config)
    try:
        with _quiet_transformers():
            model, report = factory.from_pretrained(
                name,
                config=config,
                dtype=DTYPES[dtype],
                attn_implementation=attention,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported, and refused below
                device_map={"": device} if device else None,
            )
    except (OSError, ValueError, ImportError) as error:
        raise BadInput(f"model {reference!r}: cannot be loaded ({first_line(error)})") from error
    except RuntimeError as error:
        # Under ZeRO-3 transformers raises what it otherwise reports, as a text of many lines.
        if "automatic conversion" in str(error):  # of the weights of experts, which it fuses
            raise BadInput(
                f"model {reference!r}: weights are missing, or differ in shape from those that "
                f"transformers must put together with them; {AGAIN}"
            ) from error
        mismatch = re.search(r"size mismatch for ([^:\s]+):", str(error))
        if not mismatch:
            raise
        raise BadInput(f"model {reference!r}: {_OTHER_SHAPE} ({mismatch[1]}, ...)") from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(UNREAD))
    inside = f"{getattr(model, 'base_model_prefix', '')}."
    if head and missing and not any(key.startswith(inside) for key in missing):
        raise BadInput(
            f"model {reference!r}: has no language-model head ({missing[0]}): it was saved without "
            "one, as encoders are; use the causal model that it was made from"
        )
    if missing:
        raise BadInput(
            f"model {reference!r}: {len(missing)} weights are missing: {missing[0]}, ...; {AGAIN}"
        )
    if mismatched := sorted(key for key, *_ in report["mismatched_keys"]):
        raise BadInput(f"model {reference!r}: {_OTHER_SHAPE} ({mismatched[0]}, ...)")
    return model


def add_lora(model: Any, *, lora: Lora) -> Any:
    """Put trainable adapters on the inner decoder and freeze everything else, the head included.

    Initial values depend only on torch's seed. Raises `BadInput`, which lists the model's linear
    layers, if a target is not among them.
    """
    inner = inner_decoder(model)
    linears = {n.rpartition(".")[2] for n, m in inner.named_modules() if isinstance(m, nn.Linear)}
    if not linears:
        # For example GPT-2 with its Conv1D, whose transposed weights merging does not support.
        kinds = {type(m).__name__ for m in inner.modules() if hasattr(m, "weight")}
        others = sorted(kind for kind in kinds if "Norm" not in kind and kind != "Embedding")
        raise BadInput(
            f"model.lora.targets: {lora.targets[0]!r} is no linear layer of this model, and it has "
            f"none that an adapter could be put on (its layers are {', '.join(others)}); "
            "model.lora=null trains all weights"
        )
    if unknown := [target for target in lora.targets if target not in linears]:
        raise BadInput(
            f"model.lora.targets: {unknown[0]!r} is no linear layer of this model; "
            f"valid: {', '.join(sorted(linears))}"
        )
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        bias="none",
    )
    with warnings.catch_warnings():
        # peft uses an attribute of transformers that is being renamed; users cannot change that.
        warnings.simplefilter("ignore", FutureWarning)
        # Keep the adapters in the model's type. peft would make them fp32, and under ZeRO-3 their
        # products would stay fp32. DeepSpeed keeps fp32 masters of them anyway.
        adapted = get_peft_model(inner, settings, autocast_adapter_dtype=False)
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            for name, layer in module.lora_dropout.items():
                if isinstance(layer, nn.Dropout):
                    module.lora_dropout[name] = Dropout(layer.p)
    if inner is model:
        return adapted
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_("lora_" in name)
    setattr(model, model.base_model_prefix, adapted)
    return model


def checkpoint_activations(model: Any) -> None:
    """Recompute each layer in the backward pass instead of keeping its activations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about a rename inside transformers
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


class _Index(TypedDict):
    weight_map: dict[str, FileName]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model: those in its index, or the single one.

    Other files do not count: some repositories hold a second copy of the weights
    (consolidated.safetensors) or adapters.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = checked(read_json(index), _Index, source=index, advice=AGAIN)
        return sorted({folder / name for name in content["weight_map"].values()})
    single = folder / "model.safetensors"
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def inner_class(config: PretrainedConfig) -> Any:
    """The class of a model without its language-model head; None for an unknown type."""
    inner = MODEL_MAPPING.get(type(config), None)
    return inner[0] if isinstance(inner, tuple) else inner


def inner_prefix(config: PretrainedConfig) -> str:
    """The prefix of a weight's name if the decoder is part of a causal model."""
    return str(getattr(inner_class(config), "base_model_prefix", "") or "model")


def inner_decoder(model: Any) -> Any:
    """The decoder without its language-model head."""
    return getattr(model, model.base_model_prefix, model)


def _check_files(name: str, *, config: PretrainedConfig) -> None:
    """Read the header of every file of weights, so that the error names a damaged file.

    Raises `BadInput` for layers beyond the configured number, which transformers would silently
    ignore.
    """
    files = weight_files(Path(name)) if Path(name).is_dir() else []
    names = [key for path in files for key in _names_in(path)]
    prefix = re.escape(inner_prefix(config))
    matches = [re.match(rf"(?:{prefix}\.)?(?:layers|h|blocks)\.(\d+)\.", key) for key in names]
    num_layers = max((int(match[1]) + 1 for match in matches if match), default=0)
    wanted = getattr(config, "num_hidden_layers", num_layers)
    # Multi-token prediction (DeepSeek, GLM) stores more layers on purpose.
    if num_layers > wanted + (getattr(config, "num_nextn_predict_layers", 0) or 0):
        raise BadInput(
            f"model {name!r}: has weights of {num_layers} layers, and num_hidden_layers of its "
            f"config.json is {wanted}: correct that, or save the model with that many layers"
        )


def _names_in(path: Path) -> list[str]:
    try:
        return list(read_header(path))
    except BadInput as error:
        raise BadInput(f"{error}; {AGAIN}") from error


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Turn off transformers' table of unused and missing weights, since we judge its report
    ourselves. Progress bars are shown on terminals only."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)

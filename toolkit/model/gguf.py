"""A GGUF file becomes a model folder that this toolkit, transformers and others load.

Knows GGUF by the `gguf` package and transformers' reading of it, which dequantises every weight.
Refuses to know where a file comes from. Nothing in the file is executed: its chat template is left
out of the folder.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from toolkit.base.errors import BadInput
from toolkit.base.files import committed_directory, sha256_of, write_json
from toolkit.model.backbone import DTYPES
from toolkit.model.tokenizer import first_line

SOURCE_FILE = "gguf.json"  # which file the folder was made of
_MAGIC = b"GGUF"


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """What the header of a GGUF file says: the architecture, how many tensors have which type (F32,
    Q4_1, ...), how many tokens there are, and what the makers wrote about name and licence."""

    path: Path
    architecture: str
    tensor_types: Mapping[str, int]
    num_tokens: int
    name: str = ""
    license: str = ""


def read_gguf(path: Path) -> GgufFile:
    """Check the header of a GGUF file, and that all of its tensors are there.

    Raises `BadInput` for what is no GGUF file, for one that is cut off, and for an architecture or
    a quantisation that cannot be read.
    """
    try:
        from gguf import GGUFReader, GGUFValueType, dequantize
    except ImportError as error:
        raise BadInput("GGUF files need the package gguf: pip install gguf") from error
    try:
        with path.open("rb") as handle:
            magic = handle.read(len(_MAGIC))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    if magic != _MAGIC:
        raise BadInput(f"{path}: is no GGUF file (it begins with {magic!r}, not {_MAGIC!r})")
    try:
        reader = GGUFReader(path)
        general = {}
        for key in ("architecture", "name", "license"):
            field = reader.get_field(f"general.{key}")
            is_text = field is not None and field.types == [GGUFValueType.STRING]
            general[key] = str(field.contents()) if field is not None and is_text else ""
        tokens = reader.get_field("tokenizer.ggml.tokens")
        num_tokens = len(tokens.data) if tokens is not None else 0
    except Exception as error:  # of a damaged header: whatever numpy says of nonsense
        raise BadInput(
            f"{path}: is cut off or damaged, or has tensors of an unknown type "
            f"({first_line(error)}); download it again"
        ) from error
    architecture = general["architecture"]
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        valid = ", ".join(sorted(GGUF_SUPPORTED_ARCHITECTURES))
        raise BadInput(f"{path}: architecture {architecture!r} cannot be read; valid: {valid}")
    size = path.stat().st_size
    first_of: dict[Any, Any] = {}  # the first tensor of each type
    for tensor in reader.tensors:
        if tensor.data_offset + tensor.n_bytes > size:
            raise BadInput(
                f"{path}: is cut off: tensor {tensor.name} ends at byte "
                f"{tensor.data_offset + tensor.n_bytes}, the file at {size}; download it again"
            )
        first_of.setdefault(tensor.tensor_type, tensor)
    for kind, tensor in first_of.items():
        try:
            dequantize(tensor.data[:1], kind)
        except NotImplementedError as error:
            raise BadInput(
                f"{path}: {kind.name} is a quantisation that the package gguf cannot undo "
                f"(tensor {tensor.name}); take another file of the model, such as Q8_0 or F16"
            ) from error
    counts = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    types = dict(sorted(counts.items()))
    return GgufFile(path, tensor_types=types, num_tokens=num_tokens, **general)


def convert_gguf(path: Path, *, output: Path, dtype: str = "fp32") -> GgufFile:
    """Write the model folder `output`: config.json, safetensors, the tokenizer, and a record of the
    file. `dtype` is that of the weights, "fp32" or "bf16".

    All weights are in memory at once, in fp32. Raises `BadInput` as `read_gguf` does, and for a
    file whose weights or tokenizer transformers cannot put together.
    """
    header = read_gguf(path)
    model = _loaded(path)
    tokenizer = _tokenizer(path)
    # Not len(tokenizer): transformers adds a token for unknown words where the file has none.
    if header.num_tokens > model.config.vocab_size:
        raise BadInput(
            f"{path}: the tokenizer has {header.num_tokens} tokens, and the model vectors of "
            f"{model.config.vocab_size} only"
        )
    with committed_directory(output) as folder:
        _plain(model, dtype=dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for file in folder.glob("*.safetensors"):  # which its package writes for the owner alone
            file.chmod((folder / "config.json").stat().st_mode)
        write_json(
            folder / SOURCE_FILE,
            {
                "file": path.name,
                "sha256": sha256_of(path),
                "name": header.name,
                "license": header.license,
                "architecture": header.architecture,
                "tensor_types": header.tensor_types,
            },
        )
    return header


def _loaded(path: Path) -> Any:
    """The model, as transformers dequantises it; no weight is made up."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers has no error of its own for a file that is no decoder
        raise BadInput(f"{path}: is no decoder that can be read ({first_line(error)})") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise BadInput(f"{path}: {len(missing)} weights are missing ({missing[0]}, ...)")
    return model


def _tokenizer(path: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # as above
        raise BadInput(
            f"{path}: its tokenizer cannot be read ({first_line(error)}); take the model folder "
            "that the file was made of"
        ) from error
    tokenizer.chat_template = None
    return tokenizer


def _plain(model: Any, *, dtype: str) -> Any:
    """The same weights in a model that never was quantised: transformers refuses to save one that
    came of a GGUF file."""
    settings = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype"):
        settings.pop(key, None)
    config = type(model.config).from_dict(settings)
    with torch.device("meta"):
        plain: nn.Module = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()  # type: ignore[operator]
    return plain.to(DTYPES[dtype])

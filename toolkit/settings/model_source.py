"""A reference to a model: a hub name, a model folder, a run directory (for its encoder), or the
output of an evaluation that has chosen an encoder (for that).

A program resolves it once, at its start; all other code takes the `ModelSource`. Knows names and
folders. Refuses to know what is in a model. No torch, no network.
"""

import dataclasses
import re
from pathlib import Path

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from toolkit.base.documents import checked
from toolkit.base.errors import BadInput
from toolkit.base.files import is_committed, read_json
from toolkit.base.layout import CHECKPOINT_DIR, CHOSEN_FILE, ENCODER_DIR

# For any other name the hub's client raises an error of its own, which would be a traceback.
HUB_NAME = re.compile(r"(?!.*(?:--|\.\.))\w[\w.-]*/\w(?:[\w.-]{0,94}\w)?", re.ASCII)
ADAPTER_CONFIG = "adapter_config.json"
SMOLLM2 = Path(".cache/smollm2-135m")  # the model that the *_smollm2_135m recipes name


_EVALUATE = "run the evaluation again"


class _Chosen(TypedDict):
    model: str


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a model is: in a folder of this machine, or (None) on the hub. `reference` is what was
    given, for people and for what is recorded."""

    reference: str
    folder: Path | None

    @classmethod
    def of_folder(cls, folder: Path) -> "ModelSource":
        """The source for a folder that is known to hold what is asked for: a model, a tokenizer."""
        return cls(str(folder), folder)

    @property
    def name(self) -> str:
        """The folder or the hub name, in the form that libraries take."""
        return self.reference if self.folder is None else str(self.folder)


def resolve_model(reference: str) -> ModelSource:
    """The source that `reference` stands for; a run directory stands for its encoder, and an
    evaluation with a chosen.json for the encoder that it names. Raises `BadInput` for what is no
    model, and for an adapter, which is only a part of one."""
    path = Path(reference)
    if not path.exists():
        # owner/name is a hub name, unless "owner" is a folder here: runs/mtnp is a typing error.
        looks_local = reference.startswith((".", "/", "~")) or Path(path.parts[0]).is_dir()
        if looks_local or not HUB_NAME.fullmatch(reference):
            if path == SMOLLM2:
                raise BadInput(f"model {reference!r}: is not there yet; `make smollm2` makes it")
            raise BadInput(f"model {reference!r}: no such folder, and not a hub name (owner/name)")
        return ModelSource(reference, None)
    if (path / CHOSEN_FILE).is_file():
        chosen = checked(
            read_json(path / CHOSEN_FILE), _Chosen, source=path / CHOSEN_FILE, advice=_EVALUATE
        )["model"]
        if (Path(chosen) / CHOSEN_FILE).is_file():
            raise BadInput(f"{path / CHOSEN_FILE}: names {chosen}, another choice; {_EVALUATE}")
        return resolve_model(chosen)
    if (path / CHECKPOINT_DIR).is_dir():
        if not is_committed(path / ENCODER_DIR):
            raise BadInput(
                f"model {reference!r} is a run directory without an encoder: let the run finish, "
                f"or export its newest checkpoint: python -m toolkit.export {reference} OUT"
            )
        return ModelSource(reference, path / ENCODER_DIR)
    if is_adapter(path):
        raise BadInput(
            f"model {reference!r} is an adapter; merge it into its base first: "
            f"python -m toolkit.export {reference} OUT"
        )
    if not (path / "config.json").is_file():
        raise BadInput(f"model {reference!r}: the folder has no config.json")
    if not any(path.glob("*.safetensors")):
        raise BadInput(
            f"model {reference!r}: the folder has no weights (*.safetensors); "
            "download the model whole, or convert its weights to safetensors"
        )
    return ModelSource(reference, path)


def check_reference(reference: str) -> None:
    """Raise `BadInput` for a reference that is neither a model nor an adapter."""
    if not is_adapter(Path(reference)):
        resolve_model(reference)


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter in PEFT's file format, and no whole model."""
    return (path / ADAPTER_CONFIG).is_file() and not any(path.glob("model*.safetensors*"))

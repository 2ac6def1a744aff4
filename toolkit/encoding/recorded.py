"""The settings of the encoder that has made an encoding, as its manifest records them.

Knows what a manifest says of its encoder. Refuses to know how texts become vectors.
"""

from toolkit.base.console import say_beside
from toolkit.base.errors import BadInput
from toolkit.base.layout import MANIFEST_FILE
from toolkit.encoding.store import VectorStore
from toolkit.model.fp8 import has_fp8
from toolkit.parallel.comm import device_of
from toolkit.settings.schema import EncoderSettings


def recorded_settings(
    store: VectorStore, *, model: str, adapters: tuple[str, ...]
) -> EncoderSettings:
    """The settings that vectors were made with, for a model that may have been moved. Where this
    machine has no products in 8 bits, those in bf16, with a line that says so.

    Raises `BadInput` for a manifest that does not say them.
    """
    path = store.directory / MANIFEST_FILE
    recorded = store.manifest.get("encoder")
    try:
        if not isinstance(recorded, dict) or {"model", "adapters"} & set(recorded):
            raise ValueError(f"encoder is {recorded!r:.60}")
        settings = EncoderSettings(model=model, adapters=adapters, **recorded)
    except (ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: does not say how texts were encoded ({reason})") from error
    if not settings.fp8 or has_fp8(device_of(0)):
        return settings
    say_beside(
        f"{store.directory}: was made with encoder.fp8=true, for which this machine has no GPU: "
        "other texts are embedded in bf16, which is near, and not the same"
    )
    return settings.model_copy(update={"fp8": False})

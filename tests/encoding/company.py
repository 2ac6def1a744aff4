"""Whether this machine gives a text the same bits beside any others."""

import functools
from pathlib import Path

import numpy as np

from toolkit.encoding.encoder import Encoder
from toolkit.settings.schema import EncoderSettings


@functools.cache
def company_changes_bits(model: Path) -> bool:
    """Whether the kernels of this machine give a text other bits beside other texts. Then a run
    that reuses vectors equals one from scratch but for rounding. None of ours did so far."""
    encoder = Encoder(EncoderSettings(model=str(model), max_tokens=256))
    texts = [f"word {number} of a text " * number for number in range(1, 48)]
    whole = encoder.encode(texts)
    parts = (slice(0, None, 2), slice(1, None, 3), slice(0, None, 11), slice(46, None))
    return any(not np.array_equal(encoder.encode(texts[part]), whole[part]) for part in parts)

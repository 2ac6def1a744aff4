"""Texts encoded by our Python API, as `bench_encode` compares it with others'.

usage: python -m tests.benchmarks.encode_texts MODEL TEXTS.jsonl MAX_TOKENS OUT.npy [DTYPE]
Prints texts a second of `encode` alone, after a short warm-up.
"""

import json
import sys
import time
from pathlib import Path
from typing import cast

import numpy as np

from toolkit.encoding.encoder import Encoder
from toolkit.settings.model_schema import DType


def main(model: str, texts: str, max_tokens: str, out: str, dtype: str = "fp32") -> None:
    """Load, warm up, encode."""
    encoder = Encoder.from_pretrained(
        model, max_tokens=int(max_tokens), dtype=cast(DType, dtype), device="cpu"
    )
    lines = [json.loads(line) for line in Path(texts).read_text(encoding="utf-8").splitlines()]
    encoder.encode(lines[:32])
    began = time.perf_counter()
    vectors = encoder.encode(lines)
    seconds = time.perf_counter() - began
    np.save(out, vectors)
    print(json.dumps({"rows_per_s": len(lines) / seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Texts encoded as sentence-transformers does it.

usage: sentence_transformers_encode.py MODEL TEXTS.jsonl MAX_TOKENS OUT.npy [BACKEND]
BACKEND is torch, onnx or openvino; the last two need its extra of that name.
Prints texts a second of `encode` alone, after a short warm-up.
"""

import json
import sys
import time

import numpy as np
import torch
from sentence_transformers import SentenceTransformer


def main(model, texts, max_tokens, out, backend="torch"):
    given = {}
    if backend == "torch":
        given = {"model_kwargs": {"attn_implementation": "sdpa", "dtype": torch.float32}}
    encoder = SentenceTransformer(model, device="cpu", backend=backend, **given)
    encoder.max_seq_length = int(max_tokens)
    with open(texts, encoding="utf-8") as handle:
        lines = [json.loads(line) for line in handle]
    encoder.encode(lines[:32])
    began = time.perf_counter()
    vectors = encoder.encode(lines)
    seconds = time.perf_counter() - began
    np.save(out, vectors)
    print(json.dumps({"rows_per_s": len(lines) / seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])

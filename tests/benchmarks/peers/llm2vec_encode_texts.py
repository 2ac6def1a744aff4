"""Texts encoded as llm2vec does it.

usage: llm2vec_encode_texts.py MODEL TEXTS.jsonl MAX_TOKENS OUT.npy
Prints texts a second of `encode` alone, after a short warm-up.
"""

import json
import sys
import time

import numpy as np
import torch
from llm2vec import LLM2Vec


def main(model, texts, max_tokens, out):
    length = int(max_tokens)
    encoder = LLM2Vec.from_pretrained(
        model, torch_dtype=torch.float32, max_length=length, doc_max_length=length
    )
    encoder.eval()
    with open(texts, encoding="utf-8") as handle:
        lines = [json.loads(line) for line in handle]
    encoder.encode(lines[:32], show_progress_bar=False, device="cpu")
    began = time.perf_counter()
    vectors = encoder.encode(lines, show_progress_bar=False, device="cpu")
    seconds = time.perf_counter() - began
    np.save(out, vectors.numpy())
    print(json.dumps({"rows_per_s": len(lines) / seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])

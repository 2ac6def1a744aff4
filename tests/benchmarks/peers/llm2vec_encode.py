"""Vectors of llm2vec: ASKED.json ANSWER.json

ASKED holds `jobs`, by name a model and an adapter or null, and `texts`: texts or pairs.
"""

import json
import sys

import torch
from llm2vec import LLM2Vec


def main(asked, answer):
    with open(asked, encoding="utf-8") as handle:
        given = json.load(handle)
    found = {}
    for name, (model, adapter) in given["jobs"].items():
        encoder = LLM2Vec.from_pretrained(
            model, peft_model_name_or_path=adapter, torch_dtype=torch.float32
        )
        encoder.eval()
        found[name] = {
            kind: encoder.encode(texts, show_progress_bar=False, device="cpu").tolist()
            for kind, texts in given["texts"].items()
        }
        found[name]["settings"] = [encoder.pooling_mode, encoder.max_length, encoder.doc_max_length]
    with open(answer, "w", encoding="utf-8") as handle:
        json.dump(found, handle)


if __name__ == "__main__":
    main(*sys.argv[1:])

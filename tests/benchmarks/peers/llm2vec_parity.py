"""What llm2vec computes, for a test to compare with: MODEL ASKED.json ANSWER.json

ASKED holds texts, pairs of instruction and text, and ids with labels (-100 where nothing is asked).
"""

import json
import sys

import torch
from llm2vec import LLM2Vec
from llm2vec.models import MistralBiForMNTP, MistralBiModel, Qwen2BiModel
from transformers import MistralConfig, Qwen2Config


def reacts(model_class, config_class, attention):
    """How much a later token changes the first hidden state of a small random model."""
    torch.manual_seed(0)
    config = config_class(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config._attn_implementation = attention
    model = model_class(config).eval()
    ids = torch.arange(5, 17)[None]
    other = ids.clone()
    other[0, -1] = 50
    with torch.no_grad():
        before, after = model(ids).last_hidden_state, model(other).last_hidden_state
    return float((after - before)[0, 0].abs().max())


def main(model, asked, answer):
    with open(asked, encoding="utf-8") as handle:
        given = json.load(handle)
    encoder = LLM2Vec.from_pretrained(
        model,
        enable_bidirectional=True,
        pooling_mode="mean",
        max_length=given["max_tokens"],
        torch_dtype=torch.float32,
        attn_implementation="sdpa",
    )
    encoder.eval()
    found = {
        name: encoder.encode(given[name], show_progress_bar=False, device="cpu").tolist()
        for name in ("texts", "pairs")
    }
    decoder = MistralBiForMNTP.from_pretrained(
        model, torch_dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    ids, labels = torch.tensor(given["ids"]), torch.tensor(given["labels"])
    with torch.no_grad():
        output = decoder(input_ids=ids, labels=labels)
    found["loss"] = float(output.loss)
    found["logits"] = output.logits[:, :-1][labels[:, 1:] != -100].tolist()
    found["reacts"] = {
        f"{model_class.__name__} {attention}": reacts(model_class, config_class, attention)
        for model_class, config_class in (
            (MistralBiModel, MistralConfig),
            (Qwen2BiModel, Qwen2Config),
        )
        for attention in ("sdpa", "eager")
    }
    with open(answer, "w", encoding="utf-8") as handle:
        json.dump(found, handle)


if __name__ == "__main__":
    main(*sys.argv[1:])

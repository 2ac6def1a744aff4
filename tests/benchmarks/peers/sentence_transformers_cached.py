"""SimCSE at a large batch as sentence-transformers trains it: CachedMultipleNegativesRankingLoss.

usage: sentence_transformers_cached.py MODEL SENTENCES.txt STEPS ROWS MAX_TOKENS MINI_BATCH
Prints sentences a second over the steps after the first.
"""

import json
import sys
import time

import torch
from peft import LoraConfig
from sentence_transformers import SentenceTransformer, models
from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(model, sentences, steps, rows, max_tokens, mini_batch):
    steps, rows = int(steps), int(rows)
    torch.set_num_threads(2)
    backbone = models.Transformer(
        model,
        max_seq_length=int(max_tokens),
        config_kwargs={"attention_dropout": 0.3, "is_causal": False},
        model_kwargs={"attn_implementation": "sdpa", "dtype": torch.float32},
    )
    pooling = models.Pooling(backbone.get_embedding_dimension(), pooling_mode="mean")
    encoder = SentenceTransformer(modules=[backbone, pooling], device="cpu")
    encoder.add_adapter(LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=TARGETS))
    encoder.train()
    trained = [weight for weight in encoder.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-5)
    loss = CachedMultipleNegativesRankingLoss(encoder, scale=20.0, mini_batch_size=int(mini_batch))
    with open(sentences, encoding="utf-8") as handle:
        texts = handle.read().splitlines()[: steps * rows]
    ends = []
    for step in range(steps):
        batch = texts[step * rows : (step + 1) * rows]
        optimizer.zero_grad()
        loss([encoder.tokenize(batch), encoder.tokenize(batch)], None).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        ends.append(time.perf_counter())
    print(json.dumps({"rows_per_s": (steps - 1) * rows / (ends[-1] - ends[0])}))


if __name__ == "__main__":
    main(*sys.argv[1:])

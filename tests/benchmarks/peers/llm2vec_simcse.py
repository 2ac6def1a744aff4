"""SimCSE as llm2vec trains it (experiments/run_simcse.py): its LLM2Vec, its tokenising in the
collator, its loss, HF Trainer.

usage: llm2vec_simcse.py MODEL SENTENCES.txt STEPS ROWS MAX_TOKENS
Prints sentences a second over the steps after the first.
"""

import json
import sys
import tempfile

import torch
from llm2vec import LLM2Vec
from llm2vec.loss.HardNegativeNLLLoss import HardNegativeNLLLoss
from llm2vec_training import Clock, settings, two_views, with_lora
from transformers import Trainer


class SimcseTrainer(Trainer):
    """Two forward passes and the loss, as its trainer does."""

    def compute_loss(self, model, inputs, return_outputs=False, **_settings):
        first, second = inputs["features"]
        return HardNegativeNLLLoss()(model(first), model(second), None)


def main(model, sentences, steps, rows, max_tokens):
    steps, rows = int(steps), int(rows)
    torch.set_num_threads(2)
    encoder = LLM2Vec.from_pretrained(
        model,
        enable_bidirectional=True,
        pooling_mode="mean",
        max_length=int(max_tokens),
        torch_dtype=torch.float32,
        attn_implementation="sdpa",  # the reference asks for flash-attn, which no CPU has
        attention_dropout=0.3,
    )
    encoder.model = with_lora(encoder.model, rank=16, dropout=0.05)
    with open(sentences, encoding="utf-8") as handle:
        texts = handle.read().splitlines()[: steps * rows]

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = settings(
            folder, rows=rows, steps=steps, learning_rate=3e-5, remove_unused_columns=False
        )
        SimcseTrainer(
            encoder,
            arguments,
            data_collator=two_views(encoder),
            train_dataset=texts,
            callbacks=[clock],
        ).train()
    print(json.dumps({"rows_per_s": clock.per_second(rows)}))


if __name__ == "__main__":
    main(*sys.argv[1:])

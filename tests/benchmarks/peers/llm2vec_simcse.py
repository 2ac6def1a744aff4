"""SimCSE as llm2vec trains it (experiments/run_simcse.py): its LLM2Vec, its tokenising in the
collator, its loss, HF Trainer.

usage: llm2vec_simcse.py MODEL SENTENCES.txt STEPS ROWS MAX_TOKENS
Prints sentences a second over the steps after the first.
"""

import json
import sys
import tempfile
import time

import torch
from llm2vec import LLM2Vec
from llm2vec.loss.HardNegativeNLLLoss import HardNegativeNLLLoss
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, *_arguments, **_settings):
        self.ends.append(time.perf_counter())


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
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=TARGETS)
    encoder.model = get_peft_model(encoder.model, lora)
    with open(sentences, encoding="utf-8") as handle:
        texts = handle.read().splitlines()[: steps * rows]

    def collate(batch):
        prepared = [encoder.prepare_for_tokenization(text) for text in batch]
        return {"features": [encoder.tokenize(prepared), encoder.tokenize(prepared)]}

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            per_device_train_batch_size=rows,
            max_steps=steps,
            learning_rate=3e-5,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        SimcseTrainer(
            encoder, settings, data_collator=collate, train_dataset=texts, callbacks=[clock]
        ).train()
    print(json.dumps({"rows_per_s": (steps - 1) * rows / (clock.ends[-1] - clock.ends[0])}))


if __name__ == "__main__":
    main(*sys.argv[1:])

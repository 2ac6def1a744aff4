"""MNTP as llm2vec trains it (experiments/run_mntp.py): its MistralBiForMNTP, peft, HF Trainer.

usage: llm2vec_mntp.py MODEL TEXTS.jsonl STEPS ROWS MAX_TOKENS RECOMPUTE
Prints real tokens a second over the steps after the first.
"""

import itertools
import json
import sys
import tempfile
import time

import torch
from llm2vec.models import MistralBiForMNTP
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, *_arguments, **_settings):
        self.ends.append(time.perf_counter())


def main(model, texts, steps, rows, max_tokens, recompute):
    steps, rows, max_tokens = int(steps), int(rows), int(max_tokens)
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.mask_token = "_"
    with open(texts, encoding="utf-8") as handle:
        documents = [json.loads(line)["text"] for line in handle]
    ids = itertools.chain.from_iterable(tokenizer(documents)["input_ids"])
    flat = list(itertools.islice(ids, steps * rows * max_tokens))
    blocks = [flat[start : start + max_tokens] for start in range(0, len(flat), max_tokens)]
    data = [{"input_ids": block, "attention_mask": [1] * len(block)} for block in blocks]
    decoder = MistralBiForMNTP.from_pretrained(
        model, torch_dtype=torch.float32, attn_implementation="sdpa"
    )
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=TARGETS)
    decoder.model = get_peft_model(decoder.model, lora)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            per_device_train_batch_size=rows,
            max_steps=steps,
            learning_rate=5e-5,
            use_cpu=True,
            gradient_checkpointing=bool(int(recompute)),
            gradient_checkpointing_kwargs={"use_reentrant": False},
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            label_names=["labels"],
        )
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.2)
        Trainer(
            decoder, settings, data_collator=collator, train_dataset=data, callbacks=[clock]
        ).train()
    tokens = (steps - 1) * rows * max_tokens
    print(json.dumps({"tokens_per_s": tokens / (clock.ends[-1] - clock.ends[0])}))


if __name__ == "__main__":
    main(*sys.argv[1:])

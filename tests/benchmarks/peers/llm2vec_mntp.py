"""MNTP as llm2vec trains it (experiments/run_mntp.py): its classes, peft, HF Trainer.

usage: llm2vec_mntp.py MODEL TEXTS.jsonl STEPS ROWS MAX_TOKENS RECOMPUTE
Prints real tokens a second over the steps after the first.
"""

import itertools
import json
import sys
import tempfile

import torch
from llm2vec.models import LlamaBiForMNTP, MistralBiForMNTP
from llm2vec_training import Clock, settings, with_lora
from transformers import AutoConfig, AutoTokenizer, DataCollatorForLanguageModeling, Trainer


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
    family = AutoConfig.from_pretrained(model).model_type
    decoder = {"llama": LlamaBiForMNTP, "mistral": MistralBiForMNTP}[family].from_pretrained(
        model, torch_dtype=torch.float32, attn_implementation="sdpa"
    )
    decoder.model = with_lora(decoder.model, rank=16, dropout=0.05)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = settings(
            folder,
            rows=rows,
            steps=steps,
            learning_rate=5e-5,
            gradient_checkpointing=bool(int(recompute)),
            gradient_checkpointing_kwargs={"use_reentrant": False},
            label_names=["labels"],
        )
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.2)
        Trainer(
            decoder, arguments, data_collator=collator, train_dataset=data, callbacks=[clock]
        ).train()
    print(json.dumps({"tokens_per_s": clock.per_second(rows * max_tokens)}))


if __name__ == "__main__":
    main(*sys.argv[1:])

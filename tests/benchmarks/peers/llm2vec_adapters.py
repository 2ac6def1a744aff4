"""Adapters as McGill-NLP has published them, made by llm2vec's classes and its time's peft:
BASE MNTP SECOND. Random ones: what is compared is how they are put together."""

import json
import sys

import torch
from llm2vec.models import MistralBiForMNTP, MistralBiModel
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer

TARGETS = ["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(decoder, seed):
    """With adapters that change something."""
    torch.manual_seed(seed)
    model = get_peft_model(decoder, LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def main(base, mntp, second):
    # experiments/run_mntp.py: the adapter is on the decoder in the model with a head.
    model = MistralBiForMNTP.from_pretrained(base, torch_dtype=torch.float32)
    adapted(model.get_model_for_peft(), 1).save_pretrained(mntp)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.mask_token = "_"
    tokenizer.save_pretrained(mntp)
    with open(f"{base}/config.json", encoding="utf-8") as handle:
        config = json.load(handle)
    config["auto_map"] = {"AutoModel": "modeling_mistral_encoder.MistralEncoderModel"}
    config["_name_or_path"] = base
    with open(f"{mntp}/config.json", "w", encoding="utf-8") as handle:
        json.dump(config, handle)
    with open(f"{mntp}/modeling_mistral_encoder.py", "w", encoding="utf-8") as handle:
        handle.write("raise SystemExit('ran')\n")
    # experiments/run_simcse.py: a new adapter upon the merged one.
    decoder = MistralBiModel.from_pretrained(base, torch_dtype=torch.float32)
    merged = PeftModel.from_pretrained(decoder, mntp).merge_and_unload()
    adapted(merged, 2).save_pretrained(second)


if __name__ == "__main__":
    main(*sys.argv[1:])

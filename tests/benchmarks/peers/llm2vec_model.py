"""A Mistral of the shipped model's shape with Mistral's real vocabulary and random weights: OUT
TOKENIZER_MODEL. Written by the peer's transformers, which cannot read what a newer one writes."""

import sys

import torch
from transformers import LlamaTokenizerFast, MistralConfig, MistralForCausalLM


def main(out: str, sentencepiece: str) -> None:
    tokenizer = LlamaTokenizerFast(vocab_file=sentencepiece)
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.save_pretrained(out)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        sliding_window=None,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    MistralForCausalLM(config).save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])

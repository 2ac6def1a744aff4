"""What the scripts that train as llm2vec does have in common."""

import time

from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback, TrainingArguments

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, *_arguments, **_settings):
        self.ends.append(time.perf_counter())

    def per_second(self, units):
        """The rate at which the steps after the first did so many units each."""
        return (len(self.ends) - 1) * units / (self.ends[-1] - self.ends[0])


def with_lora(model, *, rank, dropout):
    """The model with adapters on all linear layers."""
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=TARGETS)
    return get_peft_model(model, lora)


def settings(folder, *, rows, steps, learning_rate, **others):
    """HF's arguments of a run that saves and says nothing."""
    return TrainingArguments(
        folder,
        per_device_train_batch_size=rows,
        max_steps=steps,
        learning_rate=learning_rate,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **others,
    )


def two_views(encoder):
    """Its collator of SimCSE: every text prepared and tokenised, twice."""

    def collate(batch):
        prepared = [encoder.prepare_for_tokenization(text) for text in batch]
        return {"features": [encoder.tokenize(prepared), encoder.tokenize(prepared)]}

    return collate

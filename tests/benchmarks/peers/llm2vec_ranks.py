"""What llm2vec's SimCSE step does on two ranks: run under torch.distributed.run.

usage: llm2vec_ranks.py MODEL SENTENCES.txt OUT.json
Its experiments/run_simcse.py asks `self.model`, the model as it was, for the vectors, where HF's
Trainer hands `compute_loss` the model that DistributedDataParallel wraps. Both ways, one step of
the same rows; writes how far the ranks' gradients and their adapters after the step are apart.
"""

import json
import sys
import tempfile

import torch
import torch.distributed as dist
from llm2vec import LLM2Vec
from llm2vec.loss.HardNegativeNLLLoss import HardNegativeNLLLoss
from llm2vec.loss.loss_utils import all_gather_with_grad
from llm2vec_training import settings, two_views, with_lora
from transformers import Trainer, set_seed

ROWS = 8  # of each rank


def gather(rows):
    """Its gather of rows, of which every rank has as many: its own asks for a CUDA device."""
    room = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    return list(all_gather_with_grad(room, rows.contiguous(), None, False)) if len(rows) else [rows]


sys.modules[HardNegativeNLLLoss.__module__].mismatched_sizes_all_gather = gather


def adapters(model):
    """The trained parameters, in the same order on every rank."""
    return [p for n, p in sorted(model.named_parameters()) if p.requires_grad]


def apart(values):
    """The relative difference of these tensors, taken as one vector, on rank 0 and on rank 1."""
    flat = torch.cat([value.detach().flatten() for value in values])
    both = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(both, flat)
    return float((both[0] - both[1]).norm() / both[0].norm())


class SimcseTrainer(Trainer):
    """Its loss, of the model that `wrapped` says."""

    wrapped = False

    def compute_loss(self, model, inputs, return_outputs=False, **_settings):
        chosen = model if self.wrapped else self.model
        first, second = inputs["features"]
        return HardNegativeNLLLoss()(chosen(first), chosen(second), None)

    def training_step(self, model, *arguments, **settings):
        loss = super().training_step(model, *arguments, **settings)
        self.gradients_apart = apart([p.grad for p in adapters(self.model)])
        return loss


def one_step(base, texts, *, wrapped):
    set_seed(1)
    encoder = LLM2Vec.from_pretrained(
        base, enable_bidirectional=True, max_length=64, torch_dtype=torch.float32
    )
    encoder.model = with_lora(encoder.model, rank=8, dropout=0.1)
    with tempfile.TemporaryDirectory() as folder:
        arguments = settings(
            folder,
            rows=ROWS,
            steps=1,
            learning_rate=1e-3,
            ddp_backend="gloo",
            ddp_find_unused_parameters=False,
            remove_unused_columns=False,
        )
        trainer = SimcseTrainer(
            encoder, arguments, data_collator=two_views(encoder), train_dataset=texts
        )
        trainer.wrapped = wrapped
        trainer.train()
    return {"gradients_apart": trainer.gradients_apart, "adapters_apart": apart(adapters(encoder))}


def main(base, sentences, out):
    with open(sentences, encoding="utf-8") as handle:
        texts = handle.read().splitlines()[: 2 * ROWS]
    found = {
        "self.model": one_step(base, texts, wrapped=False),
        "model": one_step(base, texts, wrapped=True),
    }
    if dist.get_rank() == 0:
        with open(out, "w", encoding="utf-8") as handle:
            json.dump(found, handle)


if __name__ == "__main__":
    main(*sys.argv[1:])

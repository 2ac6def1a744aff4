"""One epoch of shuffled blocks through our stream: SHARDS MAX_TOKENS BATCH.

Prints tokens a second of reading alone, with masking and batching, of the shipped model's training
step (one process, all cores), and seconds to begin at step 1,000,000.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from toolkit.batching.batch import num_tokens
from toolkit.batching.tokenizer import text_tokenizer
from toolkit.model.backbone import load_backbone, load_config
from toolkit.settings.model_source import resolve_model
from toolkit.settings.schema import Mntp
from toolkit.text.stream import Blocks, Stream
from toolkit.text.token_shards import TokenFiles, open_tokens
from toolkit.training.mntp import MntpObjective

TINY = Path(__file__).parents[2] / "toolkit" / "quickstart" / "tiny-mistral"


def main(shards: str, max_tokens: str, batch: str) -> None:
    source = resolve_model(str(TINY))
    tokenizer = text_tokenizer(source, max_tokens=int(max_tokens))
    files = TokenFiles(shards=Path(shards), tokenizer=tokenizer, block_tokens=int(max_tokens))
    rows = int(batch)

    def stream() -> Stream[list[np.ndarray]]:
        return Stream(Blocks(open_tokens(files), crossing=False), seed=1)

    reader = stream()
    steps = reader.num_samples // rows
    began, tokens = time.perf_counter(), 0
    for step in range(steps):
        for sample in reader.batch(step, global_rows=rows, start=0, stop=rows):
            tokens += sum(map(len, sample.content))
    found = {"tokens_per_s": tokens / (time.perf_counter() - began)}

    settings = Mntp(mask_probability=0.2, mask_policy="bert")
    objective = MntpObjective(settings, tokenizer=tokenizer, seed=1, mask_id=5, packed=True)
    began, tokens, batches = time.perf_counter(), 0, []
    for step in range(min(steps, 50)):
        samples = reader.batch(step, global_rows=rows, start=0, stop=rows)
        encoded = objective.encode(samples)
        batches.append(objective.collate(encoded))
        tokens += num_tokens(batches[-1].rows)[0]
    found["collated_tokens_per_s"] = tokens / (time.perf_counter() - began)

    began = time.perf_counter()
    stream().batch(1_000_000, global_rows=rows, start=0, stop=rows)
    found["resume_s"] = time.perf_counter() - began

    model = load_backbone(
        source,
        config=load_config(source),
        head=True,
        dtype="fp32",
        attention="packed",
    )
    optimizer = torch.optim.AdamW(model.parameters())
    began, tokens = time.perf_counter(), 0
    for made in batches[:2]:
        for term, _ in objective.terms(model, [made]):
            term.backward()
        optimizer.step()
        tokens += num_tokens(made.rows)[0]
    found["training_tokens_per_s"] = tokens / (time.perf_counter() - began)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What encoding takes at least by the kernels that it uses: each alone and warm, beside the whole.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_floor [--rows 20000] [--every 20]

The texts of `bench_encode`, in fp32. Of one batch in `--every`, in the shapes of the model's first
layer: matrix products, attention over the batch's rows, norms, rotary embedding, gate and sums,
each as the model computes it, repeated on the same memory, so that it lies in the caches as far as
it can. Best of `--runs`. Their sum is what is left if nothing had to be fetched from further away,
and tokenising, pooling and Python were free; the whole encoding of the same batches stands beside
it, best of `--runs` as well.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.mistral.modeling_mistral import apply_rotary_pos_emb

from tests.benchmarks.bench_encode import MAX_TOKENS, MODEL, texts_of, write_models
from tests.benchmarks.harness import machine, options
from toolkit.batching.batch import embed_rows, model_arguments
from toolkit.encoding.batches import PreparedBatch
from toolkit.encoding.encoder import Encoder
from toolkit.model.attention import packed_attention


def best(work: Callable[[], Any], *, runs: int) -> float:
    """The least of several times, in seconds, after one that is not counted."""
    found = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def kernels(model: Any, batch: PreparedBatch) -> Mapping[str, Callable[[], Any]]:
    """What a layer computes of a batch, by kind."""
    layer, config = model.layers[0], model.config
    attention, mlp = layer.self_attn, layer.mlp
    arguments = model_arguments(batch.rows)
    num_tokens = batch.rows.ids_BT.numel()
    hidden = torch.randn(1, num_tokens, config.hidden_size)
    gate, up = mlp.gate_proj(hidden), mlp.up_proj(hidden)
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads

    def split(states: torch.Tensor, count: int) -> torch.Tensor:
        return states.view(1, num_tokens, count, -1).transpose(1, 2)

    query = split(attention.q_proj(hidden), heads)
    key, value = (split(part(hidden), key_heads) for part in (attention.k_proj, attention.v_proj))
    joined = query.transpose(1, 2).reshape(1, num_tokens, -1)
    angles = model.rotary_emb(hidden, arguments["position_ids"])
    into = (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj)
    bounds = {name: arguments[name] for name in ("cu_seq_lens_q", "row_bounds", "max_length_q")}
    return {
        "matrix products": lambda: (
            [linear(hidden) for linear in into],
            attention.o_proj(joined),
            mlp.down_proj(up),
        ),
        "attention": lambda: packed_attention(
            attention, query, key, value, scaling=attention.scaling, is_causal=False, **bounds
        ),
        "norms": lambda: (layer.input_layernorm(hidden), layer.post_attention_layernorm(hidden)),
        "rotary embedding": lambda: apply_rotary_pos_emb(query, key, *angles),
        "gate": lambda: F.silu(gate) * up,
        "sums": lambda: (hidden + hidden, hidden + hidden),
    }


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table, in seconds for all texts."""
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--model", type=Path, default=MODEL, help="a decoder's folder")
    arguments = parser.parse_args(argv)
    texts = texts_of(arguments.data, kind="natural", rows=arguments.rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder, model=arguments.model)
        encoder = Encoder.from_pretrained(
            str(folder / "model"), max_tokens=MAX_TOKENS, device="cpu"
        )
    prepared = encoder.prepare(texts)
    some = prepared.batches[arguments.every // 2 :: arguments.every] or prepared.batches
    scale = prepared.num_tokens / sum(batch.num_tokens for batch in some)
    model = encoder._model
    seconds: dict[str, float] = {}
    for batch in some:
        for kind, work in kernels(model, batch).items():
            found = best(work, runs=arguments.runs) * len(model.layers)
            seconds[kind] = seconds.get(kind, 0.0) + found
    whole = sum(
        best(lambda batch=batch: embed_rows(model, batch.rows), runs=arguments.runs)
        for batch in some
    )
    print(f"{len(texts):,} texts, {prepared.num_tokens:,} tokens, fp32, of {len(some)} batches;")
    print(f"{torch.get_num_threads()} threads, {machine()}\n\n| | s |\n|---|---|")
    for kind, found in [*seconds.items(), ("their sum", sum(seconds.values())), ("whole", whole)]:
        print(f"| {kind} | {found * scale:.1f} |")


if __name__ == "__main__":
    main()

"""The proof that vectors are what a model's folder declares: a few texts by the plainest way.

transformers' own tokenizer, a padded batch, eager attention, and then one text and one module after
another in numpy, as sentence-transformers defines them. It shares no code with the way that embeds
corpora, so that both can hardly have the same fault. Shapes: B texts, T tokens, D width.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from toolkit.base.errors import BadInput
from toolkit.model.vector_rules import ECHO_BETWEEN, Dense, VectorRules

Vectors = NDArray[np.float64]
# Of all lengths; the last one is longer than most limits and windows.
PROBES = (
    "canal",
    "A bridge carries the railway over the river.",
    "Why? " * 20,
    "The chemist poured the acid slowly into a tall beaker, and wrote down what she saw. " * 40,
)
LEAST_COSINE = {"fp32": 0.9999, "bf16": 0.99}
MOST_STRETCH = {"fp32": 1e-3, "bf16": 0.05}  # of a vector's length, relative


class OtherVectors(BadInput):
    """The vectors differ from those of the plain computation."""


def prove_vectors(found: NDArray[np.float32], *, plain: Vectors, dtype: str, model: str) -> None:
    """Raise `OtherVectors` unless the vectors of the probes equal the plain ones."""
    cosine, stretch = nearness(found, plain)
    # Written so that NaN is no equality.
    same = (cosine >= LEAST_COSINE[dtype]) & (stretch <= MOST_STRETCH[dtype])
    if not same.all():
        raise OtherVectors(
            f"model {model!r}: the vectors differ from those that its folder declares (least "
            f"cosine {cosine.min():.4f}, lengths differ by up to {stretch.max():.1%}); try "
            "encoder.attention=sdpa, and report it"
        )


def nearness(found: NDArray[Any], other: NDArray[Any]) -> tuple[Vectors, Vectors]:
    """Of each row of two tables (B, D): the cosine of both, and how much longer or shorter the
    first is than the second, relative."""
    found, other = found.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(found, axis=1), np.linalg.norm(other, axis=1)
    cosine = np.vecdot(found, other) / np.maximum(lengths[0] * lengths[1], 1e-30)
    return cosine, np.abs(lengths[0] / np.maximum(lengths[1], 1e-30) - 1)


@torch.inference_mode()
def plain_vectors(
    model: Any,
    *,
    tokenizer: PreTrainedTokenizerBase,
    rules: VectorRules,
    prompt: str,
    texts: list[str],
    max_tokens: int,
) -> Vectors:
    """The vectors (B, D) of texts behind a prompt, by `rules`."""
    if rules.echo:
        twice = [
            _read_twice(text, tokenizer=tokenizer, prompt=prompt, max_tokens=max_tokens)
            for text in texts
        ]
        hidden_BTD = _states(model, rows=[ids for ids, _ in twice], pad_id=tokenizer.pad_token_id)
        (mode,) = rules.modes
        return np.stack(
            [
                _pooled(hidden_TD, places=places, mode=mode)
                for hidden_TD, (_, places) in zip(hidden_BTD, twice, strict=True)
            ]
        )
    whole = [prompt + text for text in texts]
    if rules.lower_case:
        prompt, whole = prompt.lower(), [text.lower() for text in whole]
    options: dict[str, Any] = {"truncation": True, "max_length": max_tokens}
    batch = tokenizer(whole, return_offsets_mapping=True, **options)
    hidden_BTD = _states(model, rows=batch["input_ids"], pad_id=tokenizer.pad_token_id)
    # As sentence-transformers does it: the prompt's tokens without the one that ends a text.
    num_prompt = 0
    if prompt:
        prompt_ids = tokenizer(prompt, **options)["input_ids"]
        num_prompt = len(prompt_ids) - (prompt_ids[-1] in tokenizer.all_special_ids)
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id, tokenizer.mask_token_id}
    vectors = []
    for row in range(len(texts)):
        places = []
        for place, number in enumerate(batch["input_ids"][row]):
            is_special = number in special
            if rules.all_tokens:
                pooled = rules.include_prompt or place >= num_prompt
            else:
                end = batch["offset_mapping"][row][place][1]
                is_behind = not prompt or rules.include_prompt or end > len(prompt)
                pooled = is_behind and not is_special
            if pooled:
                places.append(place)
        pooled_D = np.concatenate(
            [_pooled(hidden_BTD[row], places=places, mode=mode) for mode in rules.modes]
        )
        for step in rules.after:
            pooled_D = _dense(step, pooled_D) if isinstance(step, Dense) else _unit(pooled_D)
        vectors.append(pooled_D[: rules.dims])
    return np.stack(vectors)


def _states(model: Any, *, rows: list[list[int]], pad_id: int) -> Vectors:
    """The states (B, T, D) of rows of ids, padded on the right, by eager attention."""
    num_tokens = max(map(len, rows))
    ids = [row + [pad_id] * (num_tokens - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (num_tokens - len(row)) for row in rows]
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        output = model(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
        )
    finally:
        model.set_attn_implementation(attention)
    states: Vectors = output.last_hidden_state.double().cpu().numpy()
    return states


def _read_twice(
    text: str, *, tokenizer: PreTrainedTokenizerBase, prompt: str, max_tokens: int
) -> tuple[list[int], list[int]]:
    """The ids of a text that is read twice, and the places of its second reading."""
    batch = tokenizer(prompt + text, return_offsets_mapping=True)
    ids: list[int] = batch["input_ids"]
    own = [place for place, (_, end) in enumerate(batch["offset_mapping"]) if end > len(prompt)]
    before, after = ids[: own[0]], ids[own[-1] + 1 :]
    between = tokenizer(ECHO_BETWEEN, add_special_tokens=False)["input_ids"]
    room = (max_tokens - len(before) - len(between) - len(after)) // 2
    read = ids[own[0] : own[-1] + 1][:room]
    first = len(before) + len(read) + len(between)
    return [*before, *read, *between, *read, *after], list(range(first, first + len(read)))


def _pooled(hidden_TD: Vectors, *, places: list[int], mode: str) -> Vectors:
    states: list[Vectors] = [hidden_TD[place] for place in places]
    if mode == "cls":
        return states[0]
    if mode == "lasttoken":
        return states[-1]
    if mode == "max":
        most: Vectors = np.max(states, axis=0)
        return most
    weights = [place + 1 if mode == "weightedmean" else 1 for place in places]
    total: Vectors = sum(
        (weight * state for weight, state in zip(weights, states, strict=True)),
        start=np.zeros_like(hidden_TD[0]),
    )
    return total / (sum(weights) ** 0.5 if mode == "mean_sqrt_len_tokens" else sum(weights))


def _unit(vector_D: Vectors) -> Vectors:
    return vector_D / max(float(np.sqrt(np.sum(vector_D**2))), 1e-12)


def _dense(step: Dense, vector_D: Vectors) -> Vectors:
    tensors = load_file(step.weights)
    product_V = tensors["linear.weight"].double() @ torch.from_numpy(vector_D)
    if step.bias:
        product_V = product_V + tensors["linear.bias"]
    result: Vectors = getattr(torch.nn, step.activation)()(product_V).numpy()
    return result

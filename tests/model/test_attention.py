"""Packed attention: each row equals the row alone, for every family; nothing leaks."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from toolkit.base.errors import BadInput
from toolkit.model import attention
from toolkit.model import attention_kernels as kernels
from toolkit.model.attention import (
    PACKED,
    pack_padded,
    packed_attention,
    register,
    unpack,
)
from toolkit.model.attention_kernels import check_dropout
from toolkit.model.bidirectional import NotIsolated, prove_bidirectional, prove_isolated

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
WINDOW = {"sliding_window": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": WINDOW,
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": WINDOW,  # soft capping, and a window in every second layer
    "gemma3_text": WINDOW,
    "phi3": {},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4},
}
LENGTHS = (5, 1, 12, 7)


def model_of(family: str, *, attention: str, causal: bool = False) -> Any:
    register()
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SMALL, **FAMILIES[family])
    config.is_causal = causal
    config.use_cache = False
    config._attn_implementation = attention
    return AutoModel.from_config(config).eval()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(4, 100, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask_BT = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    return ids_BT * mask_BT, mask_BT.long()


def packed(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return unpack(model(**pack_padded(ids_BT, mask_BT=mask_BT)).last_hidden_state, mask_BT=mask_BT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_equal_rows_alone(family: str, causal: bool) -> None:
    """The oracle is transformers' eager attention on each row by itself: loss and gradients."""
    ids_BT, mask_BT = batch()
    ours = model_of(family, attention=PACKED, causal=causal)
    theirs = model_of(family, attention="eager", causal=causal)
    found_BTD = packed(ours, ids_BT, mask_BT)
    rows = []
    for row, length in enumerate(LENGTHS):
        alone = theirs(input_ids=ids_BT[row : row + 1, :length]).last_hidden_state[0]
        torch.testing.assert_close(found_BTD[row, :length], alone, atol=1e-5, rtol=1e-5)
        rows.append(alone)
    weights_D = torch.linspace(-1, 1, 32)
    (found_BTD @ weights_D).sum().backward()
    (torch.cat(rows) @ weights_D).sum().backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if other.grad is None:
            assert mine.grad is None, name
        else:
            difference = (mine.grad - other.grad).norm() / other.grad.norm().clamp(min=1e-6)
            assert float(difference) < 1e-4, name


def bounds(lengths: tuple[int, ...]) -> list[int]:
    return [0, *itertools.accumulate(lengths)]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    lengths: tuple[int, ...],
    window: int | None = None,
    causal: bool = False,
) -> Tensor:
    """Packed attention over rows of these lengths."""
    found, _ = packed_attention(
        torch.nn.Identity(),
        query,
        key,
        value,
        cu_seq_lens_q=torch.tensor(bounds(lengths), dtype=torch.int32),
        row_bounds=tuple(bounds(lengths)),
        max_length_q=max(lengths),
        is_causal=causal,
        sliding_window=window,
    )
    return found


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize(
    "lengths",
    # alike side by side, apart, beside longer and shorter ones, and too unlike to share a group
    [(5, 5, 5), (5, 3, 5), (3, 5, 5), (9, 5, 5, 5, 2), (8,), (90, 90, 20, 90, 1, 1), (4, 0, 4)],
)
def test_rows_of_like_length_in_any_order_equal_rows_alone(
    lengths: tuple[int, ...], window: int | None
) -> None:
    generator = torch.Generator().manual_seed(2)

    def heads(count: int) -> Tensor:
        return torch.randn(1, sum(lengths), count, 8, generator=generator).transpose(1, 2)

    query, key, value = heads(4), heads(2), heads(2)
    found = attend(query, key, value, lengths=lengths, window=window)
    for first, last in itertools.pairwise(bounds(lengths)):
        row = slice(first, last)
        place = torch.arange(last - first)
        seen = (place[:, None] - place).abs() <= (window or last)
        alone = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, row],
            key[:, :, row].repeat_interleave(2, dim=1),
            value[:, :, row].repeat_interleave(2, dim=1),
            attn_mask=seen,
        )
        torch.testing.assert_close(found[:, row], alone.transpose(1, 2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 9, 40])
def test_a_row_has_the_same_bits_in_any_company(window: int | None, causal: bool) -> None:
    """Row by row, all together, and in another order: an encoding can be made in any pieces. Not
    with soft capping (Gemma 2), whose batched products have other bits for another batch."""
    lengths = (40, 1, 64, 61, 8, 7, 33, 39, 130, 128, 64, 57, 2)
    drawn = torch.Generator().manual_seed(3)
    parts = [torch.randn(1, heads, sum(lengths), 16, generator=drawn) for heads in (4, 2, 2)]
    places = [torch.arange(a, b) for a, b in itertools.pairwise(bounds(lengths))]

    def outputs(rows: list[int]) -> dict[int, Tensor]:
        chosen = torch.cat([places[row] for row in rows])
        some = [part[:, :, chosen] for part in parts]
        sizes = tuple(lengths[row] for row in rows)
        found = attend(*some, lengths=sizes, window=window, causal=causal)
        return dict(zip(rows, found[0].split(sizes), strict=True))

    everything = list(range(len(lengths)))
    whole = outputs(everything)
    backwards, halves = outputs(everything[::-1]), outputs(everything[::2])
    for row in everything:
        assert torch.equal(whole[row], outputs([row])[row])
        assert torch.equal(whole[row], backwards[row])
        assert row % 2 or torch.equal(whole[row], halves[row])


@pytest.mark.parametrize("lengths", [(3, 5), (5, 5), (5, 3, 5)])
def test_rows_can_be_trained_on_after_they_were_encoded(lengths: tuple[int, ...]) -> None:
    """What is kept for the next layer must not be of inference mode."""
    attention._grouped.cache_clear()
    query, key, value = (torch.randn(1, 2, sum(lengths), 4) for _ in range(3))
    with torch.inference_mode():
        wanted = attend(query, key, value, lengths=lengths)
    query.requires_grad_()
    found = attend(query, key, value, lengths=lengths)
    found.sum().backward()
    torch.testing.assert_close(found.detach(), wanted.clone())
    assert query.grad is not None and bool(query.grad.any())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_never_changes_its_neighbours(family: str) -> None:
    model = model_of(family, attention=PACKED)
    ids_BT, mask_BT = batch()
    other_BT = ids_BT.clone()
    other_BT[2] = 99 - other_BT[2]
    with torch.no_grad():
        before, after = (packed(model, ids, mask_BT) for ids in (ids_BT, other_BT))
    assert (before - after)[[0, 1, 3]].abs().max() == 0.0
    assert (before - after)[2].abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_proofs_hold_at_load(family: str) -> None:
    model = model_of(family, attention=PACKED)
    device = torch.device("cpu")

    def forward(ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return packed(model, ids_BT, mask_BT)

    prove_bidirectional(forward, vocab_size=100, device=device)
    prove_isolated(forward, vocab_size=100, device=device)


def test_transformers_own_attention_leaks_and_the_proof_says_so() -> None:
    model = model_of("llama", attention="sdpa")

    def forward(ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return packed(model, ids_BT, mask_BT)

    with pytest.raises(NotIsolated, match="see each other"):
        prove_isolated(forward, vocab_size=100, device=torch.device("cpu"))


def test_dropout_that_no_kernel_has_is_refused_before_a_model_is_loaded() -> None:
    given: dict[str, Any] = {"attention": PACKED, "dtype": torch.bfloat16, "on_gpu": True}
    config = AutoConfig.for_model("llama", attention_dropout=0.3)
    with pytest.raises(BadInput, match=r"attention_dropout=0.3: .*use model.attention=sdpa"):
        check_dropout(config, **given)
    for other in ({"attention": "sdpa"}, {"dtype": torch.float32}, {"on_gpu": False}):
        check_dropout(config, **{**given, **other})
    check_dropout(AutoConfig.for_model("llama"), **given)
    check_dropout(AutoConfig.for_model("gemma2", attention_dropout=0.3), **given)  # by hand


def test_dropout_is_applied_in_training_only() -> None:
    ids_BT, mask_BT = batch()
    model = model_of("llama", attention=PACKED)
    model.config.attention_dropout = 0.5
    for layer in model.layers:
        layer.self_attn.attention_dropout = 0.5
    with torch.no_grad():
        assert torch.equal(packed(model, ids_BT, mask_BT), packed(model, ids_BT, mask_BT))
        model.train()
        assert not torch.equal(packed(model, ids_BT, mask_BT), packed(model, ids_BT, mask_BT))


def test_without_bounds_it_refuses_to_guess() -> None:
    model = model_of("llama", attention=PACKED)
    with pytest.raises(ValueError, match="needs the rows' bounds"):
        model(input_ids=torch.ones(1, 4, dtype=torch.long))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_the_cuda_kernel_equals_the_rows_alone(window: int | None, causal: bool) -> None:
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, 25, 64, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2)
    )
    bounds = torch.tensor([0, 5, 6, 18, 25], dtype=torch.int32, device="cuda")
    settings = {
        "cu_seq_lens_q": bounds,
        "row_bounds": (0, 5, 6, 18, 25),
        "max_length_q": 12,
        "is_causal": causal,
        "sliding_window": window,
    }
    module = torch.nn.Module()
    fast, _ = attention.packed_attention(module, query, key, value, **settings)
    slow, _ = attention.packed_attention(
        module, *(part.float().cpu() for part in (query, key, value)), **settings
    )
    torch.testing.assert_close(fast.float().cpu(), slow, atol=2e-2, rtol=2e-2)


VARLEN_OF = {  # the parameters behind the six that all versions have
    "2.10": {"is_causal", "return_aux"},
    "2.11": {"return_aux", "scale", "window_size"},
    "2.12": {"return_aux", "scale", "window_size", "enable_gqa"},
}


@pytest.mark.parametrize("version", VARLEN_OF)
def test_torchs_kernel_is_given_what_its_version_knows(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every parameter that this torch lacks would be a TypeError in the first forward pass."""
    given: dict[str, Any] = {}

    def varlen_attn(query: Tensor, *others: Any, **named: Any) -> Tensor:
        assert len(others) == 6
        given.update(named)
        return query

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    for module in (attention, kernels):
        monkeypatch.setattr(module, "varlen_parameters", lambda: frozenset(VARLEN_OF[version]))
    monkeypatch.setattr(attention, "kernel_for", lambda **_: kernels.VARLEN)
    asked = {"attention": PACKED, "dtype": torch.bfloat16, "on_gpu": True}
    if version == "2.10":
        with pytest.raises(BadInput, match=r"no scale and no window_size.*2\.11 or newer"):
            kernels.check_torch(**asked)
        kernels.check_torch(**{**asked, "attention": "sdpa"})
        return
    kernels.check_torch(**asked)
    query_1HTE, key_1KTE = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    bound_S = torch.tensor([0, 2, 6], dtype=torch.int32)
    rows = {"cu_seq_lens_q": bound_S, "max_length_q": 4, "is_causal": False}
    rows["row_bounds"] = (0, 2, 6)
    attention.packed_attention(torch.nn.Module(), query_1HTE, key_1KTE, key_1KTE, **rows)
    assert set(given) <= VARLEN_OF[version]
    assert given.get("enable_gqa", True) is True
    assert given["window_size"] == (-1, -1)


def test_the_kernel_of_this_torch_has_all_that_is_given() -> None:
    assert {"scale", "window_size", "enable_gqa"} <= kernels.varlen_parameters()


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [
        ("llama", {}, ""),
        ("llama", {"head_dim": 256}, ""),
        ("llama", {"head_dim": 84}, "heads of 84 numbers, no multiple of 8 up to 256"),
        ("llama", {"head_dim": 264}, "heads of 264 numbers, no multiple of 8 up to 256"),
        ("gpt_neox", {"hidden_size": 160, "num_attention_heads": 2}, ""),
        ("gpt_neox", {"hidden_size": 168, "num_attention_heads": 2}, "heads of 84 numbers"),
        ("gemma2", {}, "soft capping of scores"),
    ],
)
def test_what_flash_attention_cannot_take_goes_another_way_by_name(
    family: str, changes: dict[str, Any], why: str
) -> None:
    config = AutoConfig.for_model(family, **changes)
    settings = {"dtype": torch.bfloat16, "on_gpu": True}
    line = kernels.remark(config, **settings)
    assert why in line and bool(line) == bool(why)
    kernel, _ = kernels.kernel_of(config, **settings)
    other = kernels.BY_HAND if family == "gemma2" else kernels.SDPA
    assert kernel == (other if why else kernels.VARLEN)
    assert kernels.remark(config, dtype=torch.float32, on_gpu=True) == ""
    assert kernels.remark(config, dtype=torch.bfloat16, on_gpu=False) == ""
    assert kernel in kernels.attention_in_use(config, attention=PACKED, **settings)


@pytest.mark.parametrize(("capability", "flash"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_older_than_ampere_goes_another_way_by_name(
    capability: tuple[int, int], flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    kernels.has_flash.cache_clear()
    try:
        line = kernels.remark(AutoConfig.for_model("llama"), dtype=torch.bfloat16, on_gpu=True)
        assert ("a GPU older than Ampere" in line) == (not flash)
        given: dict[str, Any] = {"on_gpu": True, "dropout": 0.0, "softcap": None}
        kernel = kernels.kernel_for(dtype=torch.float16, **given)
        assert kernel == (kernels.VARLEN if flash else kernels.SDPA)
    finally:
        kernels.has_flash.cache_clear()


def test_each_layer_is_asked_for_the_width_of_its_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def kernel_for(*, head_width: int, **_: Any) -> str:
        asked.append(head_width)
        return kernels.SDPA

    monkeypatch.setattr(attention, "kernel_for", kernel_for)
    packed(model_of("llama", attention=PACKED), *batch())
    assert asked == [8, 8, 8]

"""The proof: it passes where attention is bidirectional and fails where it is not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from toolkit.base.errors import BadInput
from toolkit.model.attention import register
from toolkit.model.attention_kernels import PACKED
from toolkit.model.backbone import load_backbone, load_config
from toolkit.model.bidirectional import (
    NotBidirectional,
    NotCausal,
    influence,
    prove_attention,
    prove_bidirectional,
)
from toolkit.settings.model_source import resolve_model

CPU = torch.device("cpu")


def forward_of(path: Path, *, attention: str, causal: bool) -> Callable[[Tensor, Tensor], Tensor]:
    config = load_config(resolve_model(str(path)), causal=causal)
    model = load_backbone(
        resolve_model(str(path)), config=config, head=False, dtype="fp32", attention=attention
    )
    model.eval()
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask).last_hidden_state


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_later_token_changes_an_earlier_state(attention: str, tiny_model: Path) -> None:
    forward = forward_of(tiny_model, attention=attention, causal=False)
    prove_bidirectional(forward, vocab_size=8192, device=CPU)
    for rows in (1, 3):
        mask = torch.ones(rows, 9, dtype=torch.long)
        mask[rows - 1, 6:] = 0 if rows > 1 else 1
        assert (influence(forward, mask_BT=mask, vocab_size=8192) > 1e-3).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_proof_fails_on_a_causal_model(attention: str, tiny_model: Path) -> None:
    forward = forward_of(tiny_model, attention=attention, causal=True)
    with pytest.raises(NotBidirectional, match="attention is causal"):
        prove_bidirectional(forward, vocab_size=8192, device=CPU)


def small(family: str, **settings: bool) -> Callable[..., Tensor]:
    """The hidden states of a model of this family in transformers, with random weights."""
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
        **settings,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(config).eval()
    return lambda **arguments: model(**arguments).last_hidden_state


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Gemma"])
def test_other_families_are_bidirectional_by_configuration(family: str) -> None:
    run = small(family, is_causal=False)
    prove_bidirectional(
        lambda ids, mask: run(input_ids=ids, attention_mask=mask), vocab_size=64, device=CPU
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager", PACKED])
@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_short_window_is_not_causal(window: int, attention: str) -> None:
    """Two layers see at most ten tokens ahead; what is causal is refused all the same."""
    import transformers

    config = transformers.MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=window,
        attn_implementation=attention,
    )
    register()

    def prove(*, causal: bool) -> None:
        config.is_causal = causal
        torch.manual_seed(0)
        model = transformers.MistralModel(config).eval()
        prove_attention(
            lambda **arguments: model(**arguments).last_hidden_state,
            packed=attention == PACKED,
            vocab_size=64,
            device=CPU,
        )

    prove(causal=False)
    with pytest.raises(NotBidirectional, match="changing all later tokens left the first output"):
        prove(causal=True)


def test_a_model_that_cannot_look_ahead_is_refused() -> None:
    """A state space model reads from left to right, whatever its configuration says."""
    from transformers import MambaConfig, MambaModel

    config = MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=100, state_size=4)
    config.is_causal = False
    torch.manual_seed(0)
    model = MambaModel(config).eval()

    def run(**arguments: Tensor) -> Tensor:
        found: Tensor = model(**arguments).last_hidden_state
        return found

    with pytest.raises(BadInput, match=r"attention is causal \(one row\).*choose another model"):
        prove_attention(run, packed=False, vocab_size=100, device=CPU)


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("family", ["Gemma3Text", "Mixtral"])
def test_causal_is_proven_where_it_is_asked_for(family: str, flag: bool) -> None:
    """Gemma 3 with this flag is bidirectional whatever `is_causal` says."""
    run = small(family, is_causal=True, use_bidirectional_attention=flag)
    if family == "Gemma3Text" and flag:
        with pytest.raises(NotCausal, match=r"not causal \(one row\).*use_bidirectional_attention"):
            prove_attention(run, packed=False, causal=True, vocab_size=64, device=CPU)
    else:
        prove_attention(run, packed=False, causal=True, vocab_size=64, device=CPU)

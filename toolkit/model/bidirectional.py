"""The proof that a loaded model attends in both directions.

Knows nothing about how a model is made bidirectional: it only changes later tokens and looks at an
earlier output. Models that silently stay causal are a recurring failure of this field, so the proof
runs after every loading, on the code path in use.

Shapes: B rows, T tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from toolkit.base.errors import BadInput
from toolkit.model.attention import pack_padded, unpack

Forward = Callable[[Tensor, Tensor], Tensor]
NUM_TOKENS = 12
LEAK = 1e-3  # relative; a real leak changes another row about as much as the changed row itself


class NotBidirectional(BadInput):
    """Later tokens do not affect an earlier output: this model cannot become an encoder."""


class NotCausal(BadInput):
    """Later tokens affect an earlier output, although the model should be causal."""


class NotIsolated(BadInput):
    """A packed document affects the output of another one."""


class NotFinite(BadInput):
    """The model's output is NaN or infinite, so that nothing can be proven or trained."""


def prove_attention(
    run: Callable[..., Tensor],
    *,
    packed: bool,
    causal: bool = False,
    vocab_size: int,
    device: torch.device,
) -> None:
    """Prove that attention is what was asked for, on the code path in use.

    `run(**arguments)` gives hidden states or logits of a forward pass, packed or padded. Raises
    `NotBidirectional` (or `NotCausal` if `causal`), `NotIsolated` when packed rows affect each
    other, and `NotFinite`.
    """

    def forward(ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        if not packed:
            return run(input_ids=ids_BT, attention_mask=mask_BT)
        return unpack(run(**pack_padded(ids_BT, mask_BT=mask_BT)), mask_BT=mask_BT)

    prove = prove_causal if causal else prove_bidirectional
    prove(forward, vocab_size=vocab_size, device=device)
    if packed:
        prove_isolated(forward, vocab_size=vocab_size, device=device)


def prove_bidirectional(forward: Forward, *, vocab_size: int, device: torch.device) -> None:
    """Raise `NotBidirectional` unless later tokens change the first own output of every row.

    `forward(ids_BT, mask_BT)` gives outputs whose first two axes are B and T (hidden states or
    logits). It is tried for one row and for a batch with left and right padding, since code that
    builds masks treats the two cases differently.
    """
    for name, mask_BT in _masks(device).items():
        changed = influence(forward, mask_BT=mask_BT, vocab_size=vocab_size)
        if not bool((changed > 0).all()):
            raise NotBidirectional(
                f"attention is causal ({name}): changing all later tokens left the first output "
                "as it was. This model or attention backend ignores config.is_causal=False: choose "
                "another model, or another model.attention"
            )


def prove_causal(forward: Forward, *, vocab_size: int, device: torch.device) -> None:
    """Raise `NotCausal` when later tokens change the first own output of a row.

    Changes by rounding do not count: in models with experts, the tokens of a batch decide which
    products are computed together. The change of the last output, which may change, is the measure.
    """
    for name, mask_BT in _masks(device).items():
        changed_B = influence(forward, mask_BT=mask_BT, vocab_size=vocab_size)
        last_B = influence(forward, mask_BT=mask_BT, vocab_size=vocab_size, last=True)
        if bool((changed_B > LEAK * last_B).any()):
            raise NotCausal(
                f"attention is not causal ({name}): changing later tokens changed the first "
                "output. This model ignores config.is_causal=True, as Gemma 3 does where its "
                "config.json says use_bidirectional_attention: ask for encoder.causal=false"
            )


@torch.no_grad()
def prove_isolated(forward: Forward, *, vocab_size: int, device: torch.device) -> None:
    """Raise `NotIsolated` when changing one packed row changes another.

    For packed attention only: code that builds masks, or a kernel, may ignore the bounds of rows.
    Documents would then attend to each other, and nothing else would show it.
    """
    # Only the middle row changes, so that a leak to either side shows.
    mask_BT = torch.ones(3, NUM_TOKENS, dtype=torch.long, device=device)
    ids_BT = (7 + 13 * torch.arange(mask_BT.numel(), device=device)).view(3, -1) % vocab_size
    other_BT = ids_BT.clone()
    other_BT[1] = (ids_BT[1] + vocab_size // 2) % vocab_size
    change_B = _change(forward(other_BT, mask_BT), forward(ids_BT, mask_BT))
    if max(float(change_B[0]), float(change_B[2])) > LEAK * float(change_B[1]):
        raise NotIsolated(
            "packed documents see each other: this model or attention backend ignores the bounds "
            "of packed rows; use model.attention=sdpa"
        )


@torch.no_grad()
def influence(forward: Forward, *, mask_BT: Tensor, vocab_size: int, last: bool = False) -> Tensor:
    """The largest absolute change (B,) of each row's first own output (`last`: of its last one)
    when all later tokens change.

    All of them change, not only the last: a sliding window may be shorter than the row.
    """
    num_rows, num_tokens = mask_BT.shape
    # Any ids will do; these are the same on all ranks, which may share one partitioned model.
    steps = torch.arange(num_rows * num_tokens, device=mask_BT.device)
    ids_BT = (7 + 13 * steps).view(num_rows, num_tokens) % vocab_size
    first_B = mask_BT.int().argmax(dim=1)
    rows_B = torch.arange(num_rows, device=mask_BT.device)
    # Padding stays the same: its change must not pass for an influence of later tokens.
    later_BT = mask_BT.bool()
    later_BT[rows_B, first_B] = False
    other_BT = torch.where(later_BT, (ids_BT + vocab_size // 2) % vocab_size, ids_BT)
    place_B = first_B + mask_BT.sum(dim=1) - 1 if last else first_B
    before = forward(ids_BT, mask_BT)[rows_B, place_B].float()
    after = forward(other_BT, mask_BT)[rows_B, place_B].float()
    return _change(after, before)


def _change(after: Tensor, before: Tensor) -> Tensor:
    change_B = (after - before).abs().flatten(1).amax(dim=1)
    if not bool(change_B.isfinite().all()):
        raise NotFinite(
            "the model's output is NaN or infinite: its weights are damaged or its training "
            "diverged; use the original weights, or an earlier checkpoint"
        )
    return change_B


def _masks(device: torch.device) -> dict[str, Tensor]:
    one = torch.ones(1, NUM_TOKENS, dtype=torch.long, device=device)
    padded = torch.ones(3, NUM_TOKENS, dtype=torch.long, device=device)
    padded[1, : NUM_TOKENS // 3] = 0
    padded[2, -NUM_TOKENS // 3 :] = 0
    return {"one row": one, "padded rows": padded}

"""A causal language model that continues prompts, several times each, in one process.

Knows the model, its cache and how a token is chosen. Refuses to know what is asked for, and where
prompts come from. A continuation depends on its prompt, its draws, and (by rounding) on the
prompts beside it, and on nothing else: no random state is kept.

Shapes: B prompts, K continuations of each, R = B * K rows, P tokens that all prompts begin with, T
tokens of a padded rest, V vocabulary, S steps.
"""

import copy
import dataclasses
import inspect
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from toolkit.base.errors import BadInput
from toolkit.model.backbone import load_backbone, load_config
from toolkit.model.memory import keep_large_blocks
from toolkit.model.onednn import lay_out_linears
from toolkit.model.tokenizer import load_tokenizer
from toolkit.settings.model_schema import DType
from toolkit.settings.model_source import ModelSource

# The nucleus is looked for among so many tokens: sorting a whole vocabulary takes longer than the
# model, and what lies behind them is noise.
MOST_CANDIDATES = 128
# Ended rows are taken out of a batch when at most this part of its rows goes on: that copies the
# cache of all the others, which is about what computing them for one more token takes.
KEPT = 0.75


@dataclasses.dataclass(frozen=True)
class Continuation:
    """What the model wrote after a prompt. `ended`: it came to an end by itself, by its end token
    or a line break, and was not cut at the most tokens allowed."""

    text: str
    tokens: int
    ended: bool


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a token is chosen: the likeliest one at temperature 0; otherwise by a draw among the
    likeliest tokens that have the probability `top_p` together."""

    temperature: float
    top_p: float

    def tokens(self, logits_RV: Tensor, draws_R: Tensor) -> Tensor:
        """The chosen tokens (R,). `draws_R` are numbers from 0 to 1 (1 excluded), one per row."""
        if not self.temperature:
            return logits_RV.argmax(dim=-1)
        most = min(MOST_CANDIDATES, logits_RV.shape[-1])
        best_RC, tokens_RC = (logits_RV.float() / self.temperature).topk(most, dim=-1)
        # Of all tokens, not of the candidates: top_p is a probability under the model.
        whole_R = torch.logsumexp(logits_RV.float() / self.temperature, dim=-1, keepdim=True)
        probability_RC = (best_RC - whole_R).exp().double()
        up_to_RC = probability_RC.cumsum(dim=-1)
        # A token is in the nucleus if those before it do not fill it; so the first always is.
        inside_RC = (up_to_RC - probability_RC) < self.top_p
        total_R1 = (probability_RC * inside_RC).sum(dim=-1, keepdim=True)
        place_R1 = (up_to_RC <= draws_R[:, None] * total_R1).sum(dim=-1, keepdim=True)
        last_R1 = inside_RC.sum(dim=-1, keepdim=True) - 1
        return tokens_RC.gather(-1, torch.minimum(place_R1, last_R1)).squeeze(-1)


class Decoder:
    """A loaded causal language model, in eval mode, with its own causal attention."""

    def __init__(self, source: ModelSource, *, dtype: DType, device: torch.device) -> None:
        if device.type == "cpu":
            keep_large_blocks()
        self.device = device
        self._config = config = causal_config(source)
        self.tokenizer = load_tokenizer(source)
        self._model = load_backbone(
            source, config=config, head=True, dtype=dtype, attention="sdpa", device=device
        )
        self._model.eval()
        if device.type == "cpu":
            lay_out_linears(self._model)
        taken = inspect.signature(self._model.forward).parameters
        self._takes = {name for name in ("position_ids", "logits_to_keep") if name in taken}
        self.ends = end_tokens(self._model, tokenizer=self.tokenizer)
        self._breaks = _LineBreaks(self.tokenizer)
        self._last_shared: tuple[Sequence[int], DynamicCache] | None = None

    @torch.inference_mode()
    def continued(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        shared: Sequence[int],
        draws_BKS: NDArray[np.float64],
        choice: Choice,
    ) -> list[list[Continuation]]:
        """K continuations of each prompt, of at most S tokens. `shared` are tokens with which the
        prompts probably begin: what they do share of them is read once for all.

        A prompt is read once, and not once per continuation.
        """
        num_prompts, times, steps = draws_BKS.shape
        assert num_prompts == len(prompts)
        head, cache = self._read_shared(prompts, shared=shared)
        longest = max(map(len, prompts)) - head
        mask_BT = torch.zeros(num_prompts, head + longest, dtype=torch.long)
        rest_BT = torch.full((num_prompts, longest), self.tokenizer.pad_token_id or 0)
        mask_BT[:, :head] = 1
        for row, prompt in enumerate(prompts):  # padding stands between what is shared and the rest
            own = len(prompt) - head
            rest_BT[row, longest - own :] = torch.tensor(prompt[head:])
            mask_BT[row, head + longest - own :] = 1
        mask_BT = mask_BT.to(self.device)
        logits_BV = self._forward(rest_BT.to(self.device), mask=mask_BT, cache=cache)
        if times > 1:
            cache.batch_repeat_interleave(times)
        draws_RS = torch.from_numpy(draws_BKS.reshape(-1, steps)).to(self.device)
        rows = self._write(
            logits_BV.repeat_interleave(times, dim=0),
            mask_RT=mask_BT.repeat_interleave(times, dim=0),
            cache=cache,
            draws_RS=draws_RS,
            choice=choice,
        )
        return [rows[start : start + times] for start in range(0, len(rows), times)]

    def _read_shared(
        self, prompts: Sequence[Sequence[int]], *, shared: Sequence[int]
    ) -> tuple[int, DynamicCache]:
        """How many tokens all prompts begin with, of `shared`, and the cache after these. Every
        prompt keeps a token of its own."""
        head = min(_common(shared, prompt) for prompt in prompts)
        head = min(head, min(map(len, prompts)) - 1)
        wanted = tuple(shared[:head])
        if self._last_shared is None or self._last_shared[0] != wanted:
            cache = DynamicCache(config=self._config)
            if wanted:
                ids_1P = torch.tensor([wanted], device=self.device)
                self._forward(ids_1P, mask=torch.ones_like(ids_1P), cache=cache)
            self._last_shared = wanted, cache
        cache = copy.deepcopy(self._last_shared[1])  # a cache grows where it is
        if head and len(prompts) > 1:
            cache.batch_repeat_interleave(len(prompts))
        return head, cache

    def _forward(self, ids_BT: Tensor, *, mask: Tensor, cache: DynamicCache) -> Tensor:
        """The logits (B, V) after the last of these tokens, which are put into the cache. `mask` is
        of all tokens, those in the cache included."""
        position_BT = (mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        extra = {"position_ids": position_BT, "logits_to_keep": 1}
        found = self._model(
            input_ids=ids_BT,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in extra.items() if name in self._takes},
        )
        logits_BV: Tensor = found.logits[:, -1]
        return logits_BV

    def _write(
        self,
        logits_RV: Tensor,
        *,
        mask_RT: Tensor,
        cache: DynamicCache,
        draws_RS: Tensor,
        choice: Choice,
    ) -> list[Continuation]:
        written: list[list[int]] = [[] for _ in range(len(logits_RV))]
        texts: dict[int, str] = {}  # of the rows that came to an end
        alive = list(range(len(written)))  # the rows that are computed, ended ones among them
        for step in range(draws_RS.shape[1]):
            token_R = choice.tokens(logits_RV, draws_RS[alive, step])
            for row, token in zip(alive, token_R.tolist(), strict=True):
                if row in texts:
                    continue
                if token in self.ends:
                    texts[row] = self._text(written[row])
                    continue
                written[row].append(token)
                if self._breaks.has(token) and "\n" in (text := self._text(written[row])).lstrip():
                    texts[row] = text
            if len(texts) == len(written) or step + 1 == draws_RS.shape[1]:
                break
            open_places = [place for place, row in enumerate(alive) if row not in texts]
            if len(open_places) <= KEPT * len(alive):
                # A few long questions would otherwise cost what all of them do.
                places_R = torch.tensor(open_places, device=self.device)
                cache.batch_select_indices(places_R)
                token_R, mask_RT = token_R[places_R], mask_RT[places_R]
                alive = [alive[place] for place in open_places]
            mask_RT = torch.cat([mask_RT, torch.ones_like(mask_RT[:, :1])], dim=-1)
            logits_RV = self._forward(token_R[:, None], mask=mask_RT, cache=cache)
        return [
            Continuation(texts.get(row, self._text(ids)), tokens=len(ids), ended=row in texts)
            for row, ids in enumerate(written)
        ]

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


class _LineBreaks:
    """Which tokens hold a line break; each is decoded once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._known = tokenizer, dict[int, bool]()

    def has(self, token: int) -> bool:
        """Whether the text of the token holds a line break."""
        if token not in self._known:
            self._known[token] = "\n" in self._tokenizer.decode([token])
        return self._known[token]


def causal_config(source: ModelSource) -> PretrainedConfig:
    """The configuration of a causal language model. Raises `BadInput` for any other model: an
    encoder, which reads in both directions, continues no text."""
    declared = load_config(source, causal=None)
    kind = declared.model_type
    is_decoder = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not declared.is_encoder_decoder
    if not is_decoder or kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise BadInput(
            f"generator.model={source.reference}: a model of type {kind!r} is no causal language "
            "model, which questions are written with"
        )
    if getattr(declared, "is_causal", None) is False:
        raise BadInput(
            f"generator.model={source.reference}: is an encoder, which attends in both directions; "
            "name the causal model that it was made from"
        )
    return load_config(source, causal=True)


def most_tokens(config: PretrainedConfig) -> int | None:
    """How many tokens the model can read and write together, if its configuration says so."""
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit


def end_tokens(model: Any, *, tokenizer: Any) -> Collection[int]:
    """The tokens after which a text is at its end, by the tokenizer and by the model's folder."""
    told = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = told if isinstance(told, list) else [told]
    return {token for token in (*several, tokenizer.eos_token_id) if token is not None}


def _common(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two rows begin with together."""
    for place, (one, other) in enumerate(zip(some, others, strict=False)):
        if one != other:
            return place
    return min(len(some), len(others))

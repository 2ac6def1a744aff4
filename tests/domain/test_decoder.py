"""The decoder beside transformers' own generation, and draws beside the model's probabilities."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from toolkit.domain import decoder as decoding
from toolkit.domain.decoder import Choice, Decoder
from toolkit.domain.writing import draws_of
from toolkit.settings.model_source import resolve_model

TEXTS = (
    "An encyclopedia. The beaver is a large rodent that builds dams.",
    "An encyclopedia. Rome",
    "An encyclopedia. Concrete is made of cement, water, sand and gravel, and hardens.",
)
SHARED = "An encyclopedia."
STEPS = 12
GREEDY = Choice(temperature=0.0, top_p=1.0)


@pytest.fixture(scope="module")
def decoder(shipped_model: Path) -> Decoder:
    return Decoder(resolve_model(str(shipped_model)), dtype="fp32", device=torch.device("cpu"))


@pytest.fixture(scope="module")
def peer(shipped_model: Path) -> tuple[torch.nn.Module, object]:
    model = AutoModelForCausalLM.from_pretrained(shipped_model, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(shipped_model)


def rows_of(decoder: Decoder) -> tuple[list[list[int]], list[int]]:
    rows = [decoder.tokenizer(text)["input_ids"] for text in TEXTS]
    return rows, decoder.tokenizer(SHARED)["input_ids"]


def no_draws(count: int, times: int = 1) -> NDArray[np.float64]:
    return np.zeros((count, times, STEPS))


def until_its_end(text: str) -> str:
    """What is written up to the first line break after any text."""
    lead = len(text) - len(text.lstrip())
    line, *_ = text[lead:].split("\n")
    return text[:lead] + line


@pytest.mark.parametrize("shared", [True, False])
def test_the_likeliest_tokens_are_those_of_transformers_for_each_text_alone(
    shared: bool, decoder: Decoder, peer: tuple[torch.nn.Module, object]
) -> None:
    rows, head = rows_of(decoder)
    found = decoder.continued(
        rows, shared=head if shared else [], draws_BKS=no_draws(len(rows)), choice=GREEDY
    )
    model, tokenizer = peer
    for text, ((one,)) in zip(TEXTS, found, strict=True):
        given = tokenizer(text, return_tensors="pt")  # type: ignore[operator]
        whole = model.generate(**given, do_sample=False, max_new_tokens=STEPS)  # type: ignore[operator]
        new = whole[0, given["input_ids"].shape[1] :]
        expected = tokenizer.decode(new, skip_special_tokens=True)  # type: ignore[attr-defined]
        assert until_its_end(one.text) == until_its_end(expected)
        assert one.ended or one.tokens == STEPS


def test_draws_choose_what_the_whole_text_read_anew_gives(
    decoder: Decoder, peer: tuple[torch.nn.Module, object]
) -> None:
    """Token by token without a cache, in float64, by the definition of the nucleus."""
    rows, head = rows_of(decoder)
    draws_BKS = np.random.default_rng(1).random((len(rows), 2, STEPS))
    choice = Choice(temperature=0.5, top_p=0.7)
    found = decoder.continued(rows, shared=head, draws_BKS=draws_BKS, choice=choice)
    model, tokenizer = peer
    num_tokens = 0
    for row, several, draws_KS in zip(rows, found, draws_BKS, strict=True):
        for one, draws_S in zip(several, draws_KS, strict=True):
            ids = list(row)
            for draw in draws_S[: one.tokens]:
                with torch.no_grad():
                    logits_V = model(torch.tensor([ids])).logits[0, -1].double().numpy()
                ids.append(drawn(logits_V, draw=draw, temperature=0.5, top_p=0.7))
            expected = tokenizer.decode(ids[len(row) :], skip_special_tokens=True)  # type: ignore[attr-defined]
            assert one.text == expected
            num_tokens += one.tokens
    assert num_tokens > STEPS


def drawn(logits_V: NDArray[np.float64], *, draw: float, temperature: float, top_p: float) -> int:
    weights = np.exp((logits_V - logits_V.max()) / temperature)
    order = np.argsort(-weights, kind="stable")
    probability = weights[order] / weights.sum()
    size = int(np.searchsorted(np.cumsum(probability), top_p)) + 1
    assert size <= decoding.MOST_CANDIDATES, "beyond what is looked at"
    edges = np.cumsum(probability[:size]) / probability[:size].sum()
    return int(order[min(int(np.searchsorted(edges, draw, side="right")), size - 1)])


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.0, 0.6), (0.5, 1.0), (2.0, 0.3)])
def test_even_draws_give_the_probabilities(temperature: float, top_p: float) -> None:
    logits_V = torch.tensor([1.0, 3.0, 2.0, -1.0, 2.5])
    num = 20_000
    draws_R = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    tokens = Choice(temperature, top_p).tokens(logits_V.expand(num, -1), draws_R)
    shares = {token: count / num for token, count in Counter(tokens.tolist()).items()}
    weights = np.exp(logits_V.numpy().astype(np.float64) / temperature)
    weights /= weights.sum()
    order = np.argsort(-weights)
    inside = [int(t) for place, t in enumerate(order) if weights[order[:place]].sum() < top_p]
    assert set(shares) == set(inside)
    for token in inside:
        assert shares[token] == pytest.approx(weights[token] / weights[inside].sum(), abs=1e-3)


def test_a_continuation_does_not_depend_on_the_texts_beside_it(decoder: Decoder) -> None:
    rows, head = rows_of(decoder)
    draws_BKS = np.random.default_rng(2).random((len(rows), 3, STEPS))
    choice = Choice(temperature=0.7, top_p=0.9)

    def texts(some: Sequence[int]) -> list[list[str]]:
        found = decoder.continued(
            [rows[k] for k in some], shared=head, draws_BKS=draws_BKS[list(some)], choice=choice
        )
        return [[one.text for one in several] for several in found]

    together = texts([0, 1, 2])
    assert [together[2], together[0]] == texts([2, 0])
    assert [together[1]] == texts([1])


def test_a_line_break_or_an_end_token_ends_a_question(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "KEPT", 0.0)
    tokenizer = decoder.tokenizer
    script = tokenizer("\nwhat is it\nand then more", add_special_tokens=False)["input_ids"]
    ends = tokenizer("why", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    planned = iter([*zip(script, ends + [0] * len(script), strict=False)])
    monkeypatch.setattr(
        Choice, "tokens", lambda self, logits_RV, draws_R: torch.tensor(next(planned))
    )
    rows, head = rows_of(decoder)
    draws = np.zeros((2, 1, len(script) - 1))
    (first,), (second,) = decoder.continued(rows[:2], shared=head, draws_BKS=draws, choice=GREEDY)
    assert first.ended and first.text.strip() == "what is it"
    assert second.ended and second.text.strip() == "why" and second.tokens == len(ends) - 1


def test_rows_that_ended_are_no_longer_computed(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those that go on are what they are beside all others."""
    rows, head = rows_of(decoder)
    draws_BKS = np.random.default_rng(2).random((len(rows), 6, STEPS))
    choice = Choice(temperature=0.7, top_p=0.9)
    often = decoder.tokenizer(" the of , a and in", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(decoder, "ends", {*decoder.ends, *often})
    sizes: list[int] = []
    real = Decoder._forward

    def watched(self: Decoder, ids_BT: torch.Tensor, **given: object) -> torch.Tensor:
        sizes.append(len(ids_BT) * (ids_BT.shape[1] == 1))
        found: torch.Tensor = real(self, ids_BT, **given)  # type: ignore[arg-type]
        return found

    monkeypatch.setattr(Decoder, "_forward", watched)
    found, computed = [], []
    for kept in (0.0, 1.0, 0.75):
        monkeypatch.setattr(decoding, "KEPT", kept)
        sizes.clear()
        found.append(decoder.continued(rows, shared=head, draws_BKS=draws_BKS, choice=choice))
        computed.append(sum(sizes))
    assert found[0] == found[1] == found[2]
    lengths = {one.tokens for several in found[0] for one in several}
    assert len(lengths) > 3, "they all end together"
    # Of the steps of each row, all but the last are computed (what comes first is in the prompt).
    needed = sum(min(one.tokens, STEPS - 1) for several in found[0] for one in several)
    assert computed[1] == needed < computed[2] < computed[0]


def test_draws_depend_on_seed_document_and_number_alone() -> None:
    names = [(s, d, n) for s in (1, 2) for d in ("1", "11", "a") for n in (0, 1)]
    found = {
        name: tuple(draws_of(name[0], document=name[1], number=name[2], steps=20)) for name in names
    }
    assert len(set(found.values())) == len(names)
    assert all(0 <= draw < 1 for draws in found.values() for draw in draws)
    longer = draws_of(1, document="1", number=0, steps=30)
    assert tuple(longer[:20]) == found[1, "1", 0]
    # Today's: what is written must not change with a library.
    assert found[1, "1", 0][:2] == (0.8164272875715014, 0.888232582769427)


def test_the_shared_part_is_read_once(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    real = Decoder._forward

    def watched(self: Decoder, ids_BT: torch.Tensor, **given: object) -> torch.Tensor:
        seen.append((ids_BT.shape[0], ids_BT.shape[1]))
        found: torch.Tensor = real(self, ids_BT, **given)  # type: ignore[arg-type]
        return found

    monkeypatch.setattr(decoding.Decoder, "_forward", watched)
    monkeypatch.setattr(decoding, "KEPT", 0.0)
    rows, head = rows_of(decoder)
    decoder._last_shared = None
    for _ in range(2):
        decoder.continued(rows, shared=head, draws_BKS=no_draws(3, times=4), choice=GREEDY)
    assert seen.count((1, len(head))) == 1
    longest = max(map(len, rows)) - len(head)
    assert [shape for shape in seen if shape[1] > 1] == [(1, len(head)), (3, longest), (3, longest)]
    assert {shape for shape in seen if shape[1] == 1} == {(12, 1)}

"""Token batches: truncation, padding, own tokens."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.conftest import run
from toolkit.base.errors import BadInput
from toolkit.text.masking import mask_tokens
from toolkit.text.tokens import TextTokenizer

BOS, PAD = 1, 3


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> TextTokenizer:
    inner = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    return TextTokenizer(inner, special_ids=[BOS, 2, PAD], pad_id=PAD, max_tokens=16)


def test_truncation_keeps_the_begin_token_and_the_limit(tokenizer: TextTokenizer) -> None:
    short, long, nothing = tokenizer.encode(["Hello.", "word " * 10_000, ""])
    assert short[0] == long[0] == BOS
    assert len(long) == 16
    assert nothing.tolist() == [BOS]


def test_a_huge_text_without_spaces_is_cut_before_tokenising(tokenizer: TextTokenizer) -> None:
    (ids,) = tokenizer.encode(["漢" * 20_000_000])  # minutes and gigabytes if tokenised whole
    assert len(ids) == 16


GROWTH = """
import random, sys
from pathlib import Path
from tokenizers import Tokenizer
from tokenizers.normalizers import Replace
from toolkit.text.tokens import TextTokenizer

def peak_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

inner = Tokenizer.from_file(sys.argv[1])
inner.normalizer, inner.pre_tokenizer = Replace(" ", "\u0120"), None  # as Llama's and Mistral's
tokenizer = TextTokenizer(inner, special_ids=[1, 2, 3], pad_id=3, max_tokens=8)
rng = random.Random(0)
words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(5000)]
texts = [" ".join(rng.choices(words, k=40)) for _ in range(16384)]
tokenizer.encode(texts[:64])
before = peak_mib()
assert len(tokenizer.encode(texts)) == len(texts)
print(peak_mib() - before)
"""


def test_many_texts_at_once_take_little_memory(tiny_model: Path) -> None:
    """MiB of the process for 16,384 sentences, of whose tokens eight are kept."""
    command = [sys.executable, "-c", GROWTH, str(tiny_model / "tokenizer.json")]
    assert float(run(command).splitlines()[-1]) < 16


def test_padding_and_own_tokens(tokenizer: TextTokenizer) -> None:
    batch = tokenizer.pad([np.array([BOS, 50, 51]), np.array([BOS]), np.array([], dtype=np.int64)])
    assert batch.ids_BT.tolist() == [[BOS, 50, 51], [BOS, PAD, PAD], [PAD, PAD, PAD]]
    assert batch.mask_BT.tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert batch.own_BT.tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(("policy", "masked"), [("bert", 0.8), ("all", 1.0)])
def test_each_mask_policy_hides_as_much_as_it_says(policy: str, masked: float) -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(100, 8000, size=200_000)
    own = np.ones(len(ids), dtype=bool)
    corrupted, hidden = mask_tokens(
        ids, own_T=own, probability=0.2, policy=policy, mask_id=7, vocab_size=8192, rng=rng
    )
    assert hidden.mean() == pytest.approx(0.2, abs=0.005)
    assert (corrupted[hidden] == 7).mean() == pytest.approx(masked, abs=0.01)
    kept = 0.1 if policy == "bert" else 0.0
    assert (corrupted[hidden] == ids[hidden]).mean() == pytest.approx(kept, abs=0.01)
    assert (corrupted[~hidden] == ids[~hidden]).all()


def test_random_replacements_are_of_every_token_that_the_model_has(tiny_model: Path) -> None:
    """Special ones too, as in the paper's code; none that was added to the tokenizer alone."""
    inner = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    known = inner.get_vocab_size()
    inner.add_tokens([f"added{number}" for number in range(known)])
    ours = TextTokenizer(
        inner, special_ids=[BOS, 2, PAD], pad_id=PAD, max_tokens=16, num_embeddings=known
    )
    assert (ours.vocab_size, ours.num_ids) == (known, 2 * known)
    ids = np.full(3_000_000, 50)
    corrupted, hidden = mask_tokens(
        ids,
        own_T=np.ones(len(ids), dtype=bool),
        probability=0.9,
        policy="bert",
        mask_id=7,
        vocab_size=ours.vocab_size,
        rng=np.random.default_rng(0),
    )
    replaced = corrupted[hidden & (corrupted != 7) & (corrupted != 50)]
    assert replaced.max() == known - 1
    assert {0, BOS, 2, PAD} <= set(replaced[replaced < 8].tolist())


def test_a_token_that_the_model_has_no_vector_of_is_refused_by_name(tiny_model: Path) -> None:
    inner = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    known = inner.get_vocab_size()
    inner.add_tokens(["zebra"])
    roles: dict[str, Any] = {"special_ids": [BOS, 2, PAD], "max_tokens": 16}
    ours = TextTokenizer(inner, **roles, pad_id=PAD, num_embeddings=known)
    assert len(ours.encode(["A horse.", "a " * 100 + "zebra"])) == 2  # one is cut before it
    message = rf"the text '.*zebra.*': holds the token 'zebra' \(id {known}\), but the model has"
    for refused in (
        lambda: ours.encode(["A horse.", "A zebra."]),
        lambda: ours.encode_after("Find the zebra; ", ["A horse."]),
        lambda: ours.places(["A horse.", "A zebra."]),
    ):
        with pytest.raises(BadInput, match=message):
            refused()
    with pytest.raises(BadInput, match=r"what stands around every text: holds the token 'zebra'"):
        TextTokenizer(inner, **roles, pad_id=known, num_embeddings=known)


def test_masks_spare_special_tokens_and_the_first_place() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        own = np.array([True, False, True, True])
        _, hidden = mask_tokens(
            np.array([5, BOS, 6, 7]),
            own_T=own,
            probability=0.05,
            policy="all",
            mask_id=9,
            vocab_size=10,
            rng=rng,
        )
        assert not hidden[:2].any()
        assert hidden.any(), "a row that can hide a token hides one"

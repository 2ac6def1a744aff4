"""Tokenizers of every kind that models come with, those that a test can train and real ones."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.conftest import QUICKSTART
from toolkit.text.tokens import TextTokenizer

BEGIN, END, MASK = "<s>", "</s>", "<mask>"
SPECIAL = ["<unk>", BEGIN, END, MASK]
# Prose, and what tokenizers have long tokens of.
PROSE = (
    "The canal joins two rivers, and boats go from the north to the south. Ünïcödé and 12345.67",
    "def f(x):\n        return x == 5  # ======== -------- aaaaaaaa abababab 1000000",
    "运河把两条河流连接起来，船只可以从北方航行到南方。 " + "=" * 64 + " " * 64 + "word",
) * 8


def byte_level() -> Tokenizer:
    """Bytes in words that GPT-2's expression parts, with tokens of many blanks and signs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, trainers.BpeTrainer, vocab_size=700, initial_alphabet=alphabet)
    return _with_begin(tokenizer)


def digits_from_the_right() -> Tokenizer:
    """The same, with digits in threes from the right: the first depend on how many follow."""
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,3}(?=(?:\d{3})*\b)"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def greedy_mask() -> Tokenizer:
    """The same, with a token that takes all blanks before it for itself, as RoBERTa's mask does."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken(MASK, lstrip=True, special=True)])
    return tokenizer


def word_piece() -> Tokenizer:
    """BERT's: blanks are folded, accents and case too, a word of over 100 characters is one unknown
    token, and texts end with a token of their own."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _train(tokenizer, trainers.WordPieceTrainer, vocab_size=500)
    return _with_begin(tokenizer, end=True)


def unigram() -> Tokenizer:
    """T5's: the best way through a word, whose first pieces depend on its last ones; blanks are
    folded by the normaliser."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s{2,}"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    _train(tokenizer, trainers.UnigramTrainer, vocab_size=300, unk_token="<unk>")
    return _with_begin(tokenizer, end=True)


def mistral(path: Path) -> Tokenizer:
    """Mistral's own, of its sentencepiece file: a text is one word, and "▁" stands for a blank."""
    vocab = {piece: number for number, piece in enumerate(_pieces(path.read_bytes()))}
    merges = [
        (piece[:at], piece[at:])
        for piece in vocab
        for at in sorted(range(1, len(piece)), key=lambda at: vocab.get(piece[:at], 0))
        if piece[:at] in vocab and piece[at:] in vocab
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.add_special_tokens([BEGIN, END])
    return _with_begin(tokenizer)


def shipped() -> Tokenizer:
    """The tiny model's."""
    return Tokenizer.from_file(str(QUICKSTART / "tiny-mistral" / "tokenizer.json"))


TRAINED: dict[str, Callable[[], Tokenizer]] = {
    function.__name__: function
    for function in (
        shipped,
        byte_level,
        digits_from_the_right,
        greedy_mask,
        word_piece,
        unigram,
    )
}


def as_ours(tokenizer: Tokenizer, *, max_tokens: int) -> TextTokenizer:
    """With its special tokens."""
    ids = [tokenizer.token_to_id(token) for token in (BEGIN, END)]
    special = [number for number in ids if number is not None]
    return TextTokenizer(tokenizer, special_ids=special, pad_id=special[-1], max_tokens=max_tokens)


def _train(tokenizer: Tokenizer, trainer: Any, **settings: Any) -> None:
    made = trainer(special_tokens=SPECIAL, show_progress=False, **settings)
    tokenizer.train_from_iterator(PROSE, made)


def _with_begin(tokenizer: Tokenizer, *, end: bool = False) -> Tokenizer:
    special = [(token, tokenizer.token_to_id(token)) for token in (BEGIN, END)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}" if end else f"{BEGIN} $A", special_tokens=special
    )
    return tokenizer


def _pieces(model: bytes) -> Iterator[str]:
    """The pieces of a sentencepiece model: field 1 of the message, of which field 1 is the text."""
    place = 0
    while place < len(model):
        key, place = _number(model, place)
        if key & 7 == 2:
            size, place = _number(model, place)
            if key >> 3 == 1:
                _, start = _number(model, place)
                length, start = _number(model, start)
                yield model[start : start + length].decode()
            place += size
        elif key & 7 == 0:
            _, place = _number(model, place)
        else:
            place += struct.calcsize("f" if key & 7 == 5 else "d")


def _number(data: bytes, place: int) -> tuple[int, int]:
    """A varint and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place

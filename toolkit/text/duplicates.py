"""Finds documents that repeat an earlier one: the same id, the same text, or nearly the same text.

Knows keys of documents, which are made where the documents are read. Decides over all documents at
once, in their order: the first one stays, whichever worker read it. Refuses to know files.

Near duplicates: MinHash of word 5-grams (Broder 1997, through the library rensa); candidates by
banding (Leskovec et al., Mining of Massive Datasets, section 3.4); a candidate is a duplicate when
the estimated Jaccard similarity reaches `LEAST_ESTIMATE`. Of pairs with a similarity of `NEAR` or
more, at least 95 in 100 are found. The standard error of an estimate is 0.02, so the limit is below
`NEAR`, and some pairs below `NEAR` are found too. Measured on real texts of 700 words, of which
some words were exchanged:

    true similarity   0.65    0.70   0.75   0.78   0.80   0.85
    found             0.000   0.01   0.51   0.84   0.99   1.00

Shapes: N documents, P permutations.
"""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import regex
from numpy.typing import NDArray

from toolkit.text.unspaced import UNSPACED, pairs

NUM_PERMUTATIONS = 256
NUM_BANDS = 32  # of 8 rows: a pair of similarity 0.8 is a candidate with probability 0.997
NEAR = 0.8
LEAST_ESTIMATE = 0.755
# 16 of 32 bits halve the memory at no cost: two different values agree in them by chance only once
# in 65,536 times.
SIGNATURE_TYPE = np.uint16
SHINGLE_WORDS = 5
SEED = 1
KEY_BYTES = 16
KEYS = 4  # version of keys and signatures: raise it when a document would get another one
PAIRS_AT_ONCE = 100_000
LONGEST_RUN = 1_000  # marks on one letter; Unicode's own limit for streams is 30 (UAX 15)
MARKS_END = 0x20000  # there are no marks in the planes from here on

Keys = NDArray[np.void]
Signature = NDArray[np.uint16]
Ints = NDArray[np.int64]
_WORD = re.compile(r"\w+")
_UNSPACED_RUN = regex.compile(rf"[{UNSPACED}]+")


@dataclass(frozen=True)
class Duplicate:
    """Document `number` repeats document `of`, an earlier one."""

    number: int
    of: int
    reason: str


def key_of(text: str) -> bytes:
    """A digest of 128 bits, which is equal for equal texts and, in practice, only for those."""
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()


def normalized(text: str) -> str:
    """The text in a form that ignores three kinds of differences, and no others.

    Ignored are: case (by Unicode's full case folding, so that a sharp s becomes ss); white space (a
    run of any such characters becomes one blank, and both ends are stripped); and the two ways to
    write an accented character (NFC). Punctuation, signs, digits and combining marks are kept,
    because they distinguish words with the same letters: C++ and C#, 5 and -5, 10 with a
    superscript 2 and 102. A run of more than `LONGEST_RUN` combining marks, which occurs in no
    language, is kept as it is: sorting its marks would take quadratic time.
    """
    return " ".join(_composed(_composed(text).casefold()).split())


def _composed(text: str) -> str:
    """The text in NFC, except for long runs of marks, which stay as they are."""
    if text.isascii():
        return text
    pieces: list[str] = []
    end = 0
    for start, stop in _long_runs(text):
        pieces += [unicodedata.normalize("NFC", text[end:start]), text[start:stop]]
        end = stop
    return "".join([*pieces, unicodedata.normalize("NFC", text[end:])])


def _long_runs(text: str) -> list[tuple[int, int]]:
    """Start and end of each run of more than `LONGEST_RUN` marks."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    marked = np.concatenate([[False], _marks()[np.minimum(codes, MARKS_END)], [False]])
    starts, stops = np.flatnonzero(marked[1:] != marked[:-1]).reshape(-1, 2).T
    long = stops - starts > LONGEST_RUN
    return list(zip(starts[long].tolist(), stops[long].tolist(), strict=True))


@functools.cache
def _marks() -> NDArray[np.bool_]:
    """Whether each character up to `MARKS_END` is a mark, as a look-up table."""
    return np.array([is_mark(chr(code)) for code in range(MARKS_END + 1)])


def is_mark(character: str) -> bool:
    """Whether a character is a mark (a non-starter of Unicode), which NFC sorts among others."""
    return unicodedata.combining(unicodedata.normalize("NFD", character)[0]) > 0


def signature(text: str) -> Signature:
    """The MinHash signature (P,) of a text.

    A shingle is `SHINGLE_WORDS` words. A text with fewer words has no such shingle; its only
    shingle is the whole normalised text.
    """
    from rensa import RMinHash  # here, because only near duplicates need it

    words = _words(text.casefold())
    shingles = [
        " ".join(words[start : start + SHINGLE_WORDS])
        for start in range(len(words) - SHINGLE_WORDS + 1)
    ] or [normalized(text)]
    minhash = RMinHash(num_perm=NUM_PERMUTATIONS, seed=SEED)
    minhash.update(shingles)
    return np.array(minhash.digest(), dtype=np.uint32).astype(SIGNATURE_TYPE)


def _words(text: str) -> list[str]:
    """Runs of letters and digits, but of a script without spaces its pairs of characters: the words
    of a whole sentence would otherwise be one, which any change makes another."""
    found: list[str] = []
    end = 0
    for run in _UNSPACED_RUN.finditer(text):
        found += _WORD.findall(text[end : run.start()])
        found += pairs(run[0])
        end = run.end()
    return found + _WORD.findall(text[end:])


def as_signatures(written: Iterable[bytes]) -> Signature:
    """Signatures (N, P), read from the bytes of each one."""
    return np.frombuffer(b"".join(written), dtype=SIGNATURE_TYPE).reshape(-1, NUM_PERMUTATIONS)


def as_keys(digests: Iterable[bytes]) -> Keys:
    """Digests as an array (N,) that numpy can sort and compare."""
    return np.frombuffer(b"".join(digests), dtype=np.dtype((np.void, KEY_BYTES)))


def repeated(keys: Keys, *, among: NDArray[np.bool_], reason: str) -> list[Duplicate]:
    """The documents `among` all whose key equals that of an earlier one of them."""
    places = np.flatnonzero(among)
    _, first, inverse = np.unique(keys[places], return_index=True, return_inverse=True)
    # `first` is the earliest place, since numpy sorts stably when it returns the index.
    again = first[inverse] != np.arange(len(places))
    return [
        Duplicate(int(number), of=int(of), reason=reason)
        for number, of in zip(places[again], places[first[inverse[again]]], strict=True)
    ]


def nearly_repeated(
    signature_NP: Signature, *, among: NDArray[np.bool_], reason: str
) -> list[Duplicate]:
    """The documents `among` all that are nearly equal to an earlier one that stays.

    A document is compared with the first document of each bucket that it falls into. If that one is
    itself a duplicate, the document is compared with the one that stays instead. Memory is needed
    for the signatures and for one band at a time.
    """
    numbers, earlier = _near_pairs(signature_NP, places=np.flatnonzero(among))
    of: dict[int, int] = {}
    for number, head in zip(numbers.tolist(), earlier.tolist(), strict=True):
        if number not in of:
            kept = of.get(head, head)
            if kept == head or _are_near(signature_NP, np.array([kept]), np.array([number]))[0]:
                of[number] = kept
    return [Duplicate(number, of=kept, reason=reason) for number, kept in of.items()]


def _near_pairs(signature_NP: Signature, *, places: Ints) -> tuple[Ints, Ints]:
    """Documents that are nearly equal to the first document of a bucket, ascending, and for each
    that first document."""
    last = np.full(len(signature_NP), -1, dtype=np.int64)
    pairs: list[Ints] = [np.zeros((2, 0), dtype=np.int64)]
    rows = NUM_PERMUTATIONS // NUM_BANDS
    for band in range(NUM_BANDS):
        part = np.ascontiguousarray(signature_NP[places, band * rows : (band + 1) * rows])
        buckets = part.view(np.dtype((np.void, part.itemsize * rows))).ravel()
        _, first, inverse = np.unique(buckets, return_index=True, return_inverse=True)
        heads, others = places[first[inverse]], places
        # Most pairs share many bands; comparing them again in each band would take most time.
        new = (heads != others) & (last[others] != heads)
        heads, others = heads[new], others[new]
        near = _are_near(signature_NP, heads, others)
        last[others[near]] = heads[near]
        pairs.append(np.stack([others[near], heads[near]]))
    numbers, earlier = np.unique(np.concatenate(pairs, axis=1), axis=1)
    return numbers, earlier


def _are_near(signature_NP: Signature, left: Ints, right: Ints) -> NDArray[np.bool_]:
    near = np.zeros(len(left), dtype=np.bool_)
    for start in range(0, len(left), PAIRS_AT_ONCE):
        some = slice(start, start + PAIRS_AT_ONCE)
        equal = signature_NP[left[some]] == signature_NP[right[some]]
        near[some] = equal.mean(axis=1) >= LEAST_ESTIMATE
    return near

"""Which documents say again what an earlier one said: the same id, the same text, nearly the same.

Knows keys of documents, made where the documents are read, and decides over all of them at once, in
their order: the first one stays, whoever read it. Refuses to know files.

Near duplicates: MinHash of word 5-grams (Broder 1997, through the library rensa), candidates by
banding (Leskovec et al., Mining of Massive Datasets, section 3.4), kept as duplicates when the
estimated Jaccard similarity reaches `LEAST_ESTIMATE`. The promise is of pairs of similarity `NEAR`
and more: at least 95 in 100 are found. An estimate errs by 0.02, so its limit is below `NEAR`, and
some pairs of less than `NEAR` go with them. Measured on real texts of 700 words, some exchanged:

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
from numpy.typing import NDArray

NUM_PERMUTATIONS = 256
NUM_BANDS = 32  # of 8: a pair of similarity 0.8 is a candidate with probability 0.997
NEAR = 0.8
LEAST_ESTIMATE = 0.755
# A pair that differs agrees in 16 bits by chance once in 65,536 times: half the memory for nothing.
SIGNATURE_TYPE = np.uint16
SHINGLE_WORDS = 5
SEED = 1
KEY_BYTES = 16
KEYS = 3  # raise it when a document gets another key or signature
PAIRS_AT_ONCE = 100_000
LONGEST_RUN = 1_000  # of marks on one letter; Unicode's own limit for streams is 30 (UAX 15)
MARKS_END = 0x20000  # no mark stands in the planes from here on

Keys = NDArray[np.void]
Signature = NDArray[np.uint16]
Ints = NDArray[np.int64]
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Duplicate:
    """Document `number` repeats document `of`, an earlier one."""

    number: int
    of: int
    reason: str


def key_of(text: str) -> bytes:
    """A digest that equal texts share, and no other two in practice (128 bits)."""
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()


def normalized(text: str) -> str:
    """The text without three differences, and with all others.

    Folded are: case (as Unicode's full case folding does, so that a sharp s is ss); white space (a
    run of it, of whatever characters, is one blank, and none stands at the ends); and the two ways
    to write one accented character (NFC). Kept are punctuation, signs, digits and combining marks,
    which make other words of the same letters: C++ and C#, 5 and -5, 10 with a superscript 2 and
    102. A run of more than `LONGEST_RUN` combining marks, which is no writing, is kept as it is:
    to put its marks in order would take time by the square of its length.
    """
    return " ".join(_composed(_composed(text).casefold()).split())


def _composed(text: str) -> str:
    """In NFC, but for its long runs of marks."""
    if text.isascii():
        return text
    pieces: list[str] = []
    end = 0
    for start, stop in _long_runs(text):
        pieces += [unicodedata.normalize("NFC", text[end:start]), text[start:stop]]
        end = stop
    return "".join([*pieces, unicodedata.normalize("NFC", text[end:])])


def _long_runs(text: str) -> list[tuple[int, int]]:
    """Where more than `LONGEST_RUN` marks stand in a row: from where to where."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    marked = np.concatenate([[False], _marks()[np.minimum(codes, MARKS_END)], [False]])
    starts, stops = np.flatnonzero(marked[1:] != marked[:-1]).reshape(-1, 2).T
    long = stops - starts > LONGEST_RUN
    return list(zip(starts[long].tolist(), stops[long].tolist(), strict=True))


@functools.cache
def _marks() -> NDArray[np.bool_]:
    """Of each character up to `MARKS_END`, whether it is a mark."""
    return np.array([is_mark(chr(code)) for code in range(MARKS_END + 1)])


def is_mark(character: str) -> bool:
    """Whether a character is put in order among its neighbours (a non-starter of Unicode)."""
    return unicodedata.combining(unicodedata.normalize("NFD", character)[0]) > 0


def signature(text: str) -> Signature:
    """The MinHash signature (P,) of a text.

    A shingle is of words, and words are of letters and digits alone. A text of fewer words than
    that has nothing to be nearly the same in: its shingle is the whole text, normalised.
    """
    from rensa import RMinHash  # here: only who asks for near duplicates needs it

    words = _WORD.findall(text.casefold())
    shingles = [
        " ".join(words[start : start + SHINGLE_WORDS])
        for start in range(len(words) - SHINGLE_WORDS + 1)
    ] or [normalized(text)]
    found = RMinHash(num_perm=NUM_PERMUTATIONS, seed=SEED)
    found.update(shingles)
    return np.array(found.digest(), dtype=np.uint32).astype(SIGNATURE_TYPE)


def as_signatures(written: Iterable[bytes]) -> Signature:
    """Signatures (N, P) of the bytes of each."""
    return np.frombuffer(b"".join(written), dtype=SIGNATURE_TYPE).reshape(-1, NUM_PERMUTATIONS)


def as_keys(digests: Iterable[bytes]) -> Keys:
    """Digests as an array that can be sorted and compared."""
    return np.frombuffer(b"".join(digests), dtype=np.dtype((np.void, KEY_BYTES)))


def repeated(keys: Keys, *, among: NDArray[np.bool_], reason: str) -> list[Duplicate]:
    """Of the documents `among`, those whose key an earlier one of them has."""
    places = np.flatnonzero(among)
    _, first, inverse = np.unique(keys[places], return_index=True, return_inverse=True)
    # `first` is the first occurrence: numpy sorts stably when it is asked for the index.
    again = first[inverse] != np.arange(len(places))
    return [
        Duplicate(int(number), of=int(of), reason=reason)
        for number, of in zip(places[again], places[first[inverse[again]]], strict=True)
    ]


def nearly_repeated(
    signature_NP: Signature, *, among: NDArray[np.bool_], reason: str
) -> list[Duplicate]:
    """Of the documents `among`, those that are nearly an earlier one that stays.

    A document is compared with the first of each bucket that it falls into, and where that one
    does not stay, with the one that stays in its place. Memory is that of the signatures and of one
    band.
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
    """Documents that are nearly the first of a bucket, ascending, and that one."""
    last = np.full(len(signature_NP), -1, dtype=np.int64)
    found: list[Ints] = [np.zeros((2, 0), dtype=np.int64)]
    rows = NUM_PERMUTATIONS // NUM_BANDS
    for band in range(NUM_BANDS):
        part = np.ascontiguousarray(signature_NP[places, band * rows : (band + 1) * rows])
        buckets = part.view(np.dtype((np.void, part.itemsize * rows))).ravel()
        _, first, inverse = np.unique(buckets, return_index=True, return_inverse=True)
        heads, others = places[first[inverse]], places
        # Most pairs meet in many bands, one after another.
        new = (heads != others) & (last[others] != heads)
        heads, others = heads[new], others[new]
        near = _are_near(signature_NP, heads, others)
        last[others[near]] = heads[near]
        found.append(np.stack([others[near], heads[near]]))
    numbers, earlier = np.unique(np.concatenate(found, axis=1), axis=1)
    return numbers, earlier


def _are_near(signature_NP: Signature, left: Ints, right: Ints) -> NDArray[np.bool_]:
    near = np.zeros(len(left), dtype=np.bool_)
    for start in range(0, len(left), PAIRS_AT_ONCE):
        some = slice(start, start + PAIRS_AT_ONCE)
        equal = signature_NP[left[some]] == signature_NP[right[some]]
        near[some] = equal.mean(axis=1) >= LEAST_ESTIMATE
    return near

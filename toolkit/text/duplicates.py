"""Which documents say again what an earlier one said: the same id, the same text, nearly the same.

Knows keys of documents, made where the documents are read, and decides over all of them at once, in
their order: the first one stays, whoever read it. Refuses to know files.

Near duplicates: MinHash of word 5-grams (Broder 1997, through the library rensa), candidates by
banding (Leskovec et al., Mining of Massive Datasets, section 3.4), kept as duplicates when the
estimated Jaccard similarity reaches `NEAR`. Shapes: N documents, P permutations.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_PERMUTATIONS = 112
NUM_BANDS = 14  # of 8: a pair of similarity 0.8 is found with probability 0.92, of 0.9 with 0.9997
NEAR = 0.8
SHINGLE_WORDS = 5
SEED = 1
KEY_BYTES = 16
KEYS = 2  # raise it when a document gets another key or signature

Keys = NDArray[np.void]
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
    102.
    """
    composed = unicodedata.normalize("NFC", text)
    return " ".join(unicodedata.normalize("NFC", composed.casefold()).split())


def signature(text: str) -> NDArray[np.uint32]:
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
    return np.array(found.digest(), dtype=np.uint32)


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
    signature_NP: NDArray[np.uint32], *, among: NDArray[np.bool_], reason: str
) -> list[Duplicate]:
    """Of the documents `among`, those that are nearly an earlier one that stays.

    A document is compared with the first of each bucket that it falls into. Memory is that of the
    signatures and of one band.
    """
    places = np.flatnonzero(among)
    of = np.full(len(signature_NP), -1, dtype=np.int64)
    rows = NUM_PERMUTATIONS // NUM_BANDS
    for band in range(NUM_BANDS):
        part = np.ascontiguousarray(signature_NP[places, band * rows : (band + 1) * rows])
        buckets = part.view(np.dtype((np.void, part.itemsize * rows))).ravel()
        _, first, inverse = np.unique(buckets, return_index=True, return_inverse=True)
        heads, others = places[first[inverse]], places
        new = (heads != others) & (of[others] < 0)
        heads, others = heads[new], others[new]
        similar = (signature_NP[heads] == signature_NP[others]).mean(axis=1) >= NEAR
        of[others[similar]] = heads[similar]
    found = []
    for number in np.flatnonzero(of >= 0).tolist():
        kept = int(of[number])
        while of[kept] >= 0:  # the head of a bucket may itself repeat an earlier document
            kept = int(of[kept])
        found.append(Duplicate(number, of=kept, reason=reason))
    return found

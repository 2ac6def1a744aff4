"""Ways to pack files, and ways in which packed files are damaged."""

import bz2
import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import xxhash
from hypothesis import strategies as st


def zstd(data: bytes) -> bytes:
    """A frame with a checksum, as the command zstd writes it; pyarrow leaves it out."""
    frame = bytearray(pa.compress(data, codec="zstd", asbytes=True))
    frame[4] |= 4  # the flag of the frame's head that says so
    return bytes(frame) + xxhash.xxh64(data, seed=0).intdigest().to_bytes(8, "little")[:4]


PACKS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".bz2": bz2.compress,
    ".zst": zstd,
}


def streams(data: bytes, *, suffix: str, count: int) -> list[bytes]:
    """The content in `count` streams of about equal size, as pigz, pbzip2 and pzstd write them."""
    size = -(-len(data) // count)
    return [PACKS[suffix](data[start : start + size]) for start in range(0, len(data), size)]


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong with a file, at a place in it."""

    how: str
    place: int
    what: int

    def done_to(self, whole: bytes) -> bytes:
        """The file with it."""
        changed = bytearray(whole)
        if self.how == "bit":
            changed[self.place] ^= 1 << self.what
        elif self.how == "zeros":
            end = min(self.place + 9 * self.what, len(whole))
            changed[self.place : end] = bytes(end - self.place)
        elif self.how == "cut":
            del changed[self.place :]
        else:
            changed += [b"\0", b"\n", b"BZ", b"junk", bytes(512), whole[:9], b"BZh9", b"\x1f"][
                self.what
            ]
        return bytes(changed)


def damages(packed: Sequence[bytes]) -> st.SearchStrategy[Damage]:
    """A bit (more often in a head or at an end), a run of zeros, an end that is missing, or
    something behind the end."""
    last = sum(map(len, packed)) - 1
    borders = [sum(map(len, packed[:number])) for number in range(len(packed) + 1)]
    near = st.sampled_from(borders).flatmap(lambda at: st.integers(at - 12, at + 12))
    place = st.one_of(near, st.integers(0, last)).map(lambda at: min(max(at, 0), last))
    how = st.sampled_from(["bit", "zeros", "cut", "behind"])
    return st.builds(Damage, how, place, st.integers(0, 7))

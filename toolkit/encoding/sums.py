"""Checksums of the blocks of a file, so that only what is read of a large file need be checked.

Knows bytes. Refuses to know what they mean. Each block of 64 KiB has a CRC-32, which finds any
damage to up to 32 neighbouring bits, and misses other damage once in four thousand million. The
checksums are the last bytes of the file. The unit's marker has a SHA-256 of them, which also shows
when one file was put in the place of another.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 2**16
SUM_BYTES = 4


def sums_of(data: bytes | memoryview, *, block_bytes: int) -> bytes:
    """The sums of all blocks of some bytes, one after another; the last block may be shorter."""
    view = memoryview(data)
    starts = range(0, len(view), block_bytes)
    return b"".join(
        zlib.crc32(view[start : start + block_bytes]).to_bytes(SUM_BYTES, "little")
        for start in starts
    )


def num_sums(num_bytes: int, *, block_bytes: int) -> int:
    """The number of blocks, and so of checksums, of `num_bytes` bytes."""
    return -(-num_bytes // block_bytes)


class CheckedBlocks:
    """Bytes whose blocks are compared with their checksums, each when it is first read."""

    def __init__(self, data: NDArray[np.uint8], *, sums: bytes, block_bytes: int) -> None:
        assert len(sums) == SUM_BYTES * num_sums(len(data), block_bytes=block_bytes)
        self._data, self._block_bytes = data, block_bytes
        self._sums = np.frombuffer(sums, dtype="<u4")
        self._open = np.ones(len(self._sums), dtype=bool)
        self._num_open = len(self._sums)

    def check(self, begin_K: NDArray[np.int64], end_K: NDArray[np.int64]) -> None:
        """Compare the blocks that hold bytes of the K stretches `begin` to `end` and that were not
        compared before. `ValueError` names the first byte of a block that differs."""
        if not self._num_open:
            return
        wanted = begin_K < end_K
        # Each stretch adds 1 at its first block and takes it away behind its last: the running sum
        # then counts the stretches that touch a block.
        steps = np.zeros(len(self._open) + 1, dtype=np.int64)
        np.add.at(steps, begin_K[wanted] // self._block_bytes, 1)
        np.add.at(steps, (end_K[wanted] - 1) // self._block_bytes + 1, -1)
        for block in np.flatnonzero((np.cumsum(steps[:-1]) > 0) & self._open).tolist():
            start = block * self._block_bytes
            if zlib.crc32(self._data[start : start + self._block_bytes].data) != self._sums[block]:
                raise ValueError(f"damaged in the {self._block_bytes} bytes from {start} on")
            self._open[block] = False
        self._num_open = int(self._open.sum())

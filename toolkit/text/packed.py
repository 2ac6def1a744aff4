"""Packed files as they were before: gzip, bzip2 and zstd, of one stream or of many.

Knows the three formats and their checksums. Refuses to know what the content means.

What is given has passed its checksum: in bzip2 block by block; in gzip stream by stream and in zstd
all of a file, which takes a first pass over it. Where that fails, or the file ends too early,
`Damaged` is raised. Whatever follows a whole stream must be another one: Python's own readers drop
a stream whose first bytes are damaged, and everything behind it, without a word.

What nobody can find: streams that are missing from the end or the middle of a file, and changed
bytes where there is no checksum (files that are not packed; zstd frames without one, such as
pyarrow's; the command zstd writes one).
"""

import bz2
import functools
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pyarrow as pa

from toolkit.base.files import stamp_of
from toolkit.text.records import Damaged, read_errors

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAGIC = {".gz": (b"\x1f\x8b",), ".bz2": (b"BZh",), ".zst": (b"\x28\xb5\x2f\xfd",)}
# A zstd file may begin with a frame that holds no content: pzstd writes such.
_SKIPPABLE = {bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60)}
_SLICE_BYTES = 2**14  # packed; far less than a block of bzip2, see `_bzip2`
_PIECE_BYTES = 2**20  # unpacked
# The most that a block of bzip2 can hold: 900,000 bytes, where five may stand for 259.
_MAX_BLOCK_BYTES = 900_000 // 5 * 259


def open_packed(path: Path, *, start: int = 0) -> IO[bytes]:
    """The unpacked content of a file, packed or not, from the byte `start` of the file on, where a
    stream begins.

    What a file begins with decides, since many are renamed; but one whose name says that it is
    packed must be. Raises `Damaged`, here or later, while it is read.
    """
    with read_errors(), path.open("rb") as handle:
        handle.seek(start)
        head = handle.read(4)
    kind = _kind_of(head)
    if not kind:
        suffix = path.suffix.lower()
        if suffix in MAGIC:
            raise Damaged(f"is damaged or of another kind (does not begin as {suffix} files do)")
        return path.open("rb")
    pieces = {".gz": _gzip, ".bz2": _bzip2, ".zst": _zstd}[kind](path, start)
    return io.BufferedReader(_Unpacked(pieces), buffer_size=2**16)


def _kind_of(head: bytes) -> str:
    if head in _SKIPPABLE:
        return ".zst"
    return next((kind for kind, magic in MAGIC.items() if head.startswith(magic)), "")


class _Unpacked(io.RawIOBase):
    """Pieces as a file. Raises `Damaged`, and again for whoever reads on after that: they must not
    take it for the end."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._damage: Damaged | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        if self._damage is not None:
            raise self._damage
        try:
            with read_errors():
                while not self._rest:
                    self._rest = memoryview(next(self._pieces))
        except StopIteration:
            return 0
        except Damaged as error:
            self._damage = error
            raise
        target = memoryview(buffer).cast("B")
        size = min(len(target), len(self._rest))
        target[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _bzip2(path: Path, start: int) -> Iterator[bytes]:
    """Each block after its checksum was compared, which libbz2 does when it has given all of it.

    That it has is known when it takes a slice and gives nothing: it then reads the next block.
    """
    held = bytearray()
    with path.open("rb") as file:
        file.seek(start)
        unpacker = bz2.BZ2Decompressor()
        packed = file.read(_SLICE_BYTES)
        while True:
            piece = unpacker.decompress(packed, _PIECE_BYTES)
            held += piece
            if unpacker.eof:
                yield bytes(held)
                held.clear()
                packed = unpacker.unused_data or file.read(_SLICE_BYTES)
                if not packed:
                    return
                unpacker = bz2.BZ2Decompressor()
                continue
            if not piece:
                yield bytes(held)
                held.clear()
            elif len(held) > 2 * _MAX_BLOCK_BYTES:  # a whole block lies behind these
                yield bytes(held[:-_MAX_BLOCK_BYTES])
                del held[:-_MAX_BLOCK_BYTES]
            packed = file.read(_SLICE_BYTES) if unpacker.needs_input else b""
            if unpacker.needs_input and not packed and not piece:
                raise EOFError


def _gzip(path: Path, start: int) -> Iterator[bytes]:
    """The streams before the first that is damaged."""
    bad, problem = _first_bad(path, start, stamp_of(path))
    for place, piece in _gzip_streams(path, start):
        if place == bad:
            raise Damaged(problem)
        yield piece


@functools.lru_cache(maxsize=64)
def _first_bad(path: Path, start: int, _: tuple[int, int]) -> tuple[int, str]:
    """Where the first gzip stream begins that is damaged, and what is wrong; -1 where none is."""
    places = [start]
    try:
        with read_errors():
            for place, _piece in _gzip_streams(path, start):
                places[0] = place
    except Damaged as error:
        return places[0], str(error)
    return -1, ""


def _gzip_streams(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """Pieces, each with the place of its stream, at least one of each stream."""
    place = start
    with path.open("rb") as file:
        file.seek(start)
        packed = file.read(_SLICE_BYTES)
        while packed:
            yield place, b""
            unpacker = zlib.decompressobj(wbits=31)  # with gzip's head and checksum
            while not unpacker.eof:
                piece = unpacker.decompress(packed, _PIECE_BYTES)
                yield place, piece
                packed = unpacker.unconsumed_tail
                if not packed and not unpacker.eof:
                    packed = file.read(_SLICE_BYTES)
                    if not packed and not piece:
                        raise EOFError
            packed = unpacker.unused_data
            place = file.tell() - len(packed)
            packed = packed or file.read(_SLICE_BYTES)


def _zstd(path: Path, start: int) -> Iterator[bytes]:
    """All of it, or nothing where something in it is damaged."""
    if problem := _zstd_problem(path, start, stamp_of(path)):
        raise Damaged(problem)
    yield from _zstd_pieces(path, start)


@functools.lru_cache(maxsize=64)
def _zstd_problem(path: Path, start: int, _: tuple[int, int]) -> str:
    try:
        with read_errors():
            for _piece in _zstd_pieces(path, start):
                pass
    except Damaged as error:
        return str(error)
    return ""


def _zstd_pieces(path: Path, start: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
        try:
            while piece := stream.read(_PIECE_BYTES):
                yield piece
        except OSError as error:
            if "Truncated" in str(error):
                raise EOFError from error
            raise

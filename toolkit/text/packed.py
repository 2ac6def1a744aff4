"""Reads compressed files strictly: gzip, bzip2 and zstd, with one stream or several.

Knows the three formats and their checksums. Refuses to know what the content means.

Bytes are handed out only after their checksum was compared: for bzip2 block by block; for gzip
stream by stream and for zstd the whole file, which takes a first pass over it. `Damaged` is raised
where a checksum is wrong or the file ends too early. What follows a complete stream must be another
stream: Python's own readers silently drop a stream whose first bytes are damaged, and everything
after it.

Two kinds of damage cannot be found: whole streams that are missing from the middle or the end of a
file, and changed bytes that have no checksum (in files that are not compressed, and in zstd frames
without one, such as pyarrow's; the zstd command writes one).
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
# A zstd file may begin with a frame that holds no content, as files of pzstd do.
_SKIPPABLE = {bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60)}
_SLICE_BYTES = 2**14  # compressed bytes per read; far less than a block of bzip2, see `_bzip2`
_PIECE_BYTES = 2**20  # decompressed bytes per piece, at most
# The largest content of a bzip2 block: 900,000 bytes, of which each five may stand for 259.
_MAX_BLOCK_BYTES = 900_000 // 5 * 259


def open_packed(path: Path, *, start: int = 0) -> IO[bytes]:
    """Open the decompressed content of a file, compressed or not. Reading starts at byte `start` of
    the file, where a stream must begin.

    The first bytes decide the format, since many files have been renamed; but a file whose name
    says that it is compressed must be. Raises `Damaged`, now or while the content is read.
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
    """A file made of pieces. Once it has raised `Damaged`, every further read raises it again, so
    that no reader takes the damage for the end of the file."""

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
    """The content of each block, after libbz2 has compared its checksum.

    libbz2 does that when it has handed out the whole block. We notice that it has done so when it
    takes a slice and returns nothing: it then reads the next block.
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
            elif len(held) > 2 * _MAX_BLOCK_BYTES:  # more than a block follows the bytes we yield
                yield bytes(held[:-_MAX_BLOCK_BYTES])
                del held[:-_MAX_BLOCK_BYTES]
            packed = file.read(_SLICE_BYTES) if unpacker.needs_input else b""
            if unpacker.needs_input and not packed and not piece:
                raise EOFError


def _gzip(path: Path, start: int) -> Iterator[bytes]:
    """The content of the streams before the first damaged one; then raises `Damaged`."""
    bad, problem = _first_bad(path, start, stamp_of(path))
    for place, piece in _gzip_streams(path, start):
        if place == bad:
            raise Damaged(problem)
        yield piece


@functools.lru_cache(maxsize=64)
def _first_bad(path: Path, start: int, _: tuple[int, int]) -> tuple[int, str]:
    """The byte where the first damaged gzip stream begins, and what is wrong; -1 if none is
    damaged. The unnamed argument is the stamp of the file: a changed file is looked at again."""
    places = [start]
    try:
        with read_errors():
            for place, _piece in _gzip_streams(path, start):
                places[0] = place
    except Damaged as error:
        return places[0], str(error)
    return -1, ""


def _gzip_streams(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """Pieces of content, each with the byte where its stream begins; at least one per stream."""
    place = start
    with path.open("rb") as file:
        file.seek(start)
        packed = file.read(_SLICE_BYTES)
        while packed:
            yield place, b""
            unpacker = zlib.decompressobj(wbits=31)  # 31 reads gzip's header and checksum
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
    """The whole content; raises `Damaged` before the first piece if anything is damaged."""
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

"""Reads the pages of a MediaWiki dump one at a time, starting at any page.

Knows the XML of a dump (through mwxml), its compressions, and the index of a multistream dump.
Refuses to know wiki markup (`wikitext`) and what becomes of a page.

The dump is cut at `</page>` before any XML is parsed. So pages that other workers read are skipped
at the speed of decompression, and one damaged page costs that page only.
"""

import codecs
import functools
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from xml.etree.ElementTree import ParseError

import mwxml
import numpy as np
from mwxml.element_iterator import ElementIterator
from mwxml.errors import MalformedXML
from numpy.typing import NDArray

from toolkit.text.packed import open_packed
from toolkit.text.records import Damaged, read_errors
from toolkit.text.wikitext import HIDDEN_LINKS

BLOCK_BYTES = 2**20
MAX_PAGE_BYTES = 2**28  # with all its revisions; a page of a history dump can be large
FILE_NAMESPACE, CATEGORY_NAMESPACE = 6, 14
_END_OF_PAGE = b"</page>"
_PROLOG = re.compile(rb"^\s*<\?xml[^>]*\?>")
_ENCODING = re.compile(rb"""encoding=["']([A-Za-z0-9._-]+)["']""")
# Python lists these codecs as encodings of text, but no file is encoded in them.
_NO_ENCODINGS = ("idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape")
_UTF16_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Site:
    """What the head of a dump says: the address of pages, and the namespaces of hidden links."""

    page_url: str = ""
    hidden_links: frozenset[str] = HIDDEN_LINKS
    namespaces: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Page:
    """A page with the text of its last revision. `namespace` 0 holds the articles."""

    id: str
    title: str
    namespace: int
    is_redirect: bool
    wikitext: str


class Dump:
    """A dump (.xml, plain or compressed by bzip2, gzip or zstd, in one stream or many).

    With a multistream index beside it (`index_of`), reading can start at any page; otherwise it
    starts at the first page and skips. Raises `Damaged` for a file that is no dump.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.index = index_of(path)
        with open_packed(path) as handle, read_errors():
            head, _ = _cut_head(next(_pieces(_utf8_blocks(handle)), b""))
        self.site = site_of(head)

    @property
    def seeks(self) -> bool:
        """Whether `pages` can start anywhere without reading all pages before."""
        return self.index is not None

    def pages(self, start: int) -> Iterator[bytes]:
        """The XML of page `start` (from 0) and of all pages after it.

        Raises `Damaged` at the place from which the file cannot be read.
        """
        if self.index is not None:
            yield from self._indexed(start, offsets=_read_index(self.index))
            return
        with open_packed(self._path) as handle, read_errors():
            yield from _from(_pages(handle), start)

    def _indexed(self, start: int, *, offsets: "_Offsets") -> Iterator[bytes]:
        stream = int(np.searchsorted(offsets.first_page, start, side="right")) - 1
        place = int(offsets.byte[stream])
        with read_errors(), self._path.open("rb") as file:
            file.seek(place)
            if file.read(3) != b"BZh":
                raise Damaged(f"its index {self.index} belongs to another file")
        with open_packed(self._path, start=place) as handle, read_errors():
            for number, page in enumerate(_pages(handle), int(offsets.first_page[stream])):
                while stream < len(offsets.first_page) and offsets.first_page[stream] <= number:
                    # If the index lacked a line, every later page would get a wrong number.
                    if offsets.first_id[stream] != _id_in(page):
                        raise Damaged(f"its index {self.index} names another page {number + 1}")
                    stream += 1
                if number >= start:
                    yield page


@dataclass(frozen=True)
class _Offsets:
    """For each stream of a multistream dump, the byte where it begins, and the number (in the dump)
    and the id of its first page."""

    byte: NDArray[np.int64]
    first_page: NDArray[np.int64]
    first_id: NDArray[np.int64]


def index_of(path: Path) -> Path | None:
    """The index file of a multistream dump, found by Wikimedia's naming; None if there is none.

    x-multistream.xml.bz2 has x-multistream-index.txt.bz2, x-multistream1.xml-p1p9.bz2 has
    x-multistream-index1.txt-p1p9.bz2; a decompressed index has no .bz2.
    """
    if "multistream" not in path.name or not path.name.endswith(".bz2"):
        return None
    name = path.name.replace("multistream", "multistream-index").replace(".xml", ".txt")
    for candidate in (path.with_name(name), path.with_name(name.removesuffix(".bz2"))):
        if candidate.is_file():
            return candidate
    return None


def read_page(xml: bytes, *, site: Site) -> Page:
    """Parse the XML of a page; `ValueError` says in a few words why it cannot be read."""
    try:
        text = xml.decode()
    except UnicodeDecodeError:
        raise ValueError("not valid UTF-8") from None
    if "\0" in text:
        raise ValueError("NUL character")
    try:
        element = ElementIterator.from_file(io.StringIO(text))
        page = mwxml.Page.from_element(element, {n.name: n for n in site.namespaces})
        wikitext = ""
        for revision in page:
            wikitext = revision.text or ""
    except (ParseError, MalformedXML, AttributeError, TypeError, ValueError) as error:
        raise ValueError("not valid page XML") from error
    if page.id is None or page.title is None:
        raise ValueError("not valid page XML")
    return Page(
        id=str(page.id),
        title=page.title,
        namespace=page.namespace or 0,
        is_redirect=page.redirect is not None,
        wikitext=wikitext,
    )


def site_of(head: bytes) -> Site:
    """Parse the XML before the first page; `Damaged` if it is not the head of a dump."""
    try:
        root = ElementIterator.from_file(io.BytesIO(head + b"</mediawiki>"))
        if root.tag != "mediawiki":
            raise Damaged(
                f"is XML, but no MediaWiki dump (its root is <{root.tag}>); "
                "give a pages-articles file"
            )
        for element in root:
            if element.tag == "siteinfo":
                return _site(mwxml.SiteInfo.from_element(element))
    except Damaged:
        raise
    except (ParseError, MalformedXML, TypeError, ValueError) as error:
        raise Damaged(
            "is no MediaWiki XML dump; give a pages-articles file, .xml or with .bz2, .gz, .zst"
        ) from error
    return Site()


def _site(info: Any) -> Site:
    namespaces = tuple(info.namespaces or ())
    hidden = {
        namespace.name.casefold()
        for namespace in namespaces
        if namespace.id in (FILE_NAMESPACE, CATEGORY_NAMESPACE)
    }
    base = info.base or ""
    return Site(
        page_url=base[: base.rfind("/") + 1],
        hidden_links=HIDDEN_LINKS | hidden,
        namespaces=namespaces,
    )


def _pages(handle: IO[bytes]) -> Iterator[bytes]:
    """The `<page>...</page>` elements of a dump, or of its end; `Damaged` if the file is cut
    off."""
    piece = b""
    for piece in _pieces(_utf8_blocks(handle)):
        if piece.endswith(_END_OF_PAGE):
            yield _cut_head(piece)[1]
    if not piece.rstrip().endswith(b"</mediawiki>"):
        raise Damaged("ends too early; copy or download it again")


def _pieces(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The bytes cut after each `</page>`; the last piece is what follows the last page."""
    buffer = bytearray()
    for block in blocks:
        # Search only the new block (and a tag across its border): a page may span many blocks, and
        # searching it from the start each time would take quadratic time.
        seen = max(0, len(buffer) - len(_END_OF_PAGE))
        buffer += block
        begin = 0
        while (end := buffer.find(_END_OF_PAGE, max(begin, seen))) >= 0:
            end += len(_END_OF_PAGE)
            yield bytes(buffer[begin:end])
            begin = end
        del buffer[:begin]
        if len(buffer) > MAX_PAGE_BYTES:
            raise Damaged(f"has no end of a page in {MAX_PAGE_BYTES // 2**20} MiB")
    yield bytes(buffer)


def _cut_head(piece: bytes) -> tuple[bytes, bytes]:
    """The bytes before the first `<page>` (all bytes if there is none), and the rest."""
    place = piece.find(b"<page>")
    return (piece, b"") if place < 0 else (piece[:place], piece[place:])


def _utf8_blocks(handle: IO[bytes]) -> Iterator[bytes]:
    """The content in UTF-8, decoded as its XML declaration or byte order mark says, and without
    these two."""
    block = _read1(handle).removeprefix(codecs.BOM_UTF8)
    decoder = _decoder(block)
    first = True
    while block:
        if decoder is not None:
            try:
                block = decoder.decode(block).encode()
            except UnicodeError as error:
                reason = getattr(error, "reason", str(error))
                raise Damaged(f"is not valid in the encoding that it names ({reason})") from error
        yield _PROLOG.sub(b"", block, count=1) if first else block
        first = False
        block = _read1(handle)


def _read1(handle: IO[bytes]) -> bytes:
    # read1, not read: of a file that ends too early, read would lose what can still be unpacked.
    data: bytes = handle.read1(BLOCK_BYTES)  # type: ignore[attr-defined]
    return data


def _decoder(start: bytes) -> codecs.IncrementalDecoder | None:
    """The decoder for a dump that begins with `start`; None for UTF-8, since pages are decoded one
    by one and a damaged page must not cost the others."""
    prolog = _PROLOG.match(start)
    declared = _ENCODING.search(prolog[0]) if prolog else None
    encoding = declared[1].decode() if declared else "utf-8"
    try:
        if start.startswith(_UTF16_BOMS):
            encoding = "utf-16"
        # A codec that changes the ASCII of the declaration itself (rot13) cannot be meant.
        elif prolog and prolog[0].decode(encoding) != prolog[0].decode("ascii"):
            raise LookupError
        name = codecs.lookup(encoding).name
        if name in _NO_ENCODINGS:
            raise LookupError
    except (LookupError, UnicodeError):
        raise Damaged(
            f"is in an unknown encoding, {encoding[:40]!r}; convert it to UTF-8, or "
            "correct its first line"
        ) from None
    return None if name in ("utf-8", "ascii") else codecs.getincrementaldecoder(name)()


def _from(pages: Iterator[bytes], start: int) -> Iterator[bytes]:
    for number, page in enumerate(pages):
        if number >= start:
            yield page


@functools.lru_cache(maxsize=8)
def _read_index(path: Path) -> _Offsets:
    """Read an index, whose lines are offset:page id:title (25 million for the English Wikipedia),
    and keep one entry per stream."""
    offsets: list[int] = []
    first_page: list[int] = []
    first_id: list[int] = []
    last = b""
    with read_errors(), open_packed(path) as handle:
        for number, line in enumerate(handle):
            offset = line[: line.find(b":")]
            if offset != last:
                identifier = line.partition(b":")[2].partition(b":")[0]
                if not offset.isdigit() or not identifier.isdigit():
                    raise Damaged(f"its index {path} is damaged (line {number + 1})")
                offsets.append(int(offset))
                first_page.append(number)
                first_id.append(int(identifier))
                last = offset
    if not offsets or sorted(set(offsets)) != offsets:
        raise Damaged(f"its index {path} is damaged")
    columns = (np.array(column, dtype=np.int64) for column in (offsets, first_page, first_id))
    return _Offsets(*columns)


def _id_in(page: bytes) -> int:
    """The page's id, which is the first `<id>` in its XML; -1 if there is none."""
    digits = page.partition(b"<id>")[2].partition(b"</id>")[0].strip()
    return int(digits) if digits.isdigit() else -1

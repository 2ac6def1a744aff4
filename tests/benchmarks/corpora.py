"""Inputs of any size, made of the pages of a real dump: each copy with its own titles and ids."""

import bz2
import re
from collections.abc import Iterator
from pathlib import Path

from toolkit.text.dump import Dump

DUMP = "mediawiki_dump/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


def copies(dump: Path, *, megabytes: float) -> Iterator[bytes]:
    """The XML of pages, about so many megabytes in all."""
    pages = list(Dump(dump).pages(0))
    size, number = 0, 0
    while size < megabytes * 1e6:
        for page in pages:
            changed = re.sub(rb"<title>", b"<title>%d " % number, page, count=1)
            changed = re.sub(rb"<id>(\d+)</id>", rb"<id>%d\1</id>" % (number + 1), changed, count=1)
            yield changed
            size += len(changed)
            if size >= megabytes * 1e6:
                return
        number += 1


def write_dump(dump: Path, *, megabytes: float, out: Path) -> None:
    """A .xml.bz2 of about so many megabytes of XML."""
    with bz2.open(dump) as source:
        head = source.read(2**16)
    with bz2.open(out, "wb", compresslevel=5) as handle:
        handle.write(head[: head.index(b"<page>")])
        for page in copies(dump, megabytes=megabytes):
            handle.write(page + b"\n")
        handle.write(b"</mediawiki>\n")

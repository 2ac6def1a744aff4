"""Every kind of page, every file that is no dump, and multistream dumps read from anywhere."""

import bz2
import contextlib
import encodings.aliases
import gzip
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from tests.text.damage import PACKS
from toolkit.text.dump import MAX_PAGE_BYTES, Dump
from toolkit.text.readers import DumpPages
from toolkit.text.records import Article, Damaged, Rejected

SITEINFO = """<siteinfo><sitename>W</sitename><dbname>w</dbname>
<base>https://bg.wikipedia.org/wiki/Main_Page</base><generator>g</generator><case>c</case>
<namespaces><namespace key="0" case="c" /><namespace key="1" case="c">Talk</namespace>
<namespace key="6" case="c">Файл</namespace></namespaces></siteinfo>"""


def a_page(title: str, text: str, *, number: int = 1, namespace: int = 0, head: str = "") -> str:
    return (
        f"<page><title>{escape(title)}</title><ns>{namespace}</ns><id>{number}</id>{head}"
        f"<revision><id>1</id><text>{escape(text)}</text></revision></page>"
    )


def a_dump(*pages: str, siteinfo: str = SITEINFO) -> bytes:
    namespace = "http://www.mediawiki.org/xml/export-0.10/"
    return f'<mediawiki xmlns="{namespace}">{siteinfo}{"".join(pages)}</mediawiki>'.encode()


def read(path: Path) -> tuple[list[Article], Counter[str]]:
    source = DumpPages(path)
    found = [source.document(row, number=n) for n, row in enumerate(source.rows(0))]
    articles = [document for document in found if isinstance(document, Article)]
    rejected = Counter(document.reason for document in found if isinstance(document, Rejected))
    return articles, rejected


@pytest.mark.parametrize("pack", [bytes, *PACKS.values()])
def test_only_articles_are_kept(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    path = tmp_path / "misnamed.xml"
    path.write_bytes(
        pack(
            a_dump(
                a_page("Old", "#REDIRECT [[New]]", head='<redirect title="New" />'),
                a_page("Older", "#redirect [[New]]"),
                a_page("Стар", "#виж [[New]] here", head='<redirect title="New" />'),
                a_page("Talk:New", "hello", namespace=1),
                a_page("Hollow", "{{stub}}"),
                a_page("Awful", "<a " * 2000),
                a_page("Ядро & co", "Text [[Файл:x.png|thumb|y]] here.", number=7),
            )
        )
    )
    articles, skipped = read(path)
    assert articles == [
        Article(
            id="7",
            title="Ядро & co",
            url="https://bg.wikipedia.org/wiki/%D0%AF%D0%B4%D1%80%D0%BE_%26_co",
            text="Text here.",
        )
    ]
    assert skipped == {"redirect": 3, "not an article": 1, "no prose": 1, "unreadable markup": 1}


def test_the_last_revision_counts(tmp_path: Path) -> None:
    first = "<revision><id>1</id><text>Old text.</text></revision>"
    path = tmp_path / "history.xml"
    path.write_bytes(a_dump(a_page("A", "New text.", head=first)))
    assert [article.text for article in read(path)[0]] == ["New text."]


def test_an_export_without_siteinfo_has_no_addresses(tmp_path: Path) -> None:
    path = tmp_path / "export.xml"
    path.write_bytes(a_dump(a_page("A", "Text."), siteinfo=""))
    assert [(article.url, article.text) for article in read(path)[0]] == [("", "Text.")]


WHOLE = a_dump(*(a_page(f"T{i}", f"Some text of page {i * i}.") for i in range(300)))
BAD_DUMPS = {
    "cut.xml.bz2": (bz2.compress(WHOLE)[:-200], "ends too early; copy or download it again"),
    "cut.xml.gz": (gzip.compress(WHOLE)[:-200], "ends too early; copy or download it again"),
    "cut.xml": (WHOLE[: len(WHOLE) // 2], "ends too early"),
    "flipped.xml.bz2": (b"BZh9" + b"\x00" * 99, "is damaged"),
    "flipped.xml.gz": (gzip.compress(WHOLE)[:10] + b"\xff" * 99, "is damaged"),
    "prose.xml": (b"Just some words.\n", "is no MediaWiki XML dump"),
    "prose.xml.bz2": (bz2.compress(b"Just some words.\n"), "is no MediaWiki XML dump"),
    "image.xml": (b"\x89PNG\r\n\x1a\n\x00\x00", "is no MediaWiki XML dump"),
    "other.xml": (b"<html><body>x</body></html>", "its root is <html>"),
    "odd.xml": (
        b'<?xml version="1.0" encoding="klingon"?><mediawiki></mediawiki>',
        "is in an unknown encoding, 'klingon'",
    ),
    "rotten.xml": (
        b'<?xml version="1.0" encoding="rot13"?><mediawiki></mediawiki>',
        "is in an unknown encoding, 'rot13'",
    ),
    "half.xml": ("<mediawiki>é</mediawiki>".encode("utf-16")[:-1] + b"\xd8", "no MediaWiki"),
}


@pytest.mark.parametrize("name", BAD_DUMPS)
def test_a_file_that_is_no_whole_dump_says_what_it_is(tmp_path: Path, name: str) -> None:
    content, message = BAD_DUMPS[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(Damaged) as caught:
        read(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def declared(encoding: str) -> bytes:
    return f'<?xml version="1.0" encoding="{encoding}"?>\n'.encode() + WHOLE


NO_ENCODINGS = [
    *("rot13", "rot_13", "ROT-13", "hex", "base64", "bz2", "zip", "uu", "quopri", "undefined"),
    *("idna", "punycode", "unicode_escape", "raw_unicode_escape", "unicode-escape"),
    *("aliases", "__init__", "..", "-", "os", "x" * 10_000),
]


@pytest.mark.parametrize("encoding", NO_ENCODINGS, ids=lambda name: name[:20])
def test_a_declaration_that_names_no_encoding_of_text_is_said(
    tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "x.xml"
    path.write_bytes(declared(encoding))
    with pytest.raises(Damaged, match="is in an unknown encoding, ") as caught:
        read(path)
    assert repr(encoding[:40]) in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (b"<page><id>x</id></page>", "not valid page XML"),
        (b"<page><title>A</title><ns>0</ns><id>3</id><b></page>", "not valid page XML"),
        (b"<page>", "not valid page XML"),  # takes the next one with it
        (a_page("A\0B", "text").encode(), "NUL character"),
        (a_page("A", "text").encode().replace(b"<text", b"<te\xfft", 1), "not valid UTF-8"),
        (a_page("A", "words").encode().replace(b"words", b"w\xffrds"), "not valid UTF-8"),
        (b"<page><ns>0</ns><id>3</id><revision><id>1</id></revision></page>", "not valid page XML"),
    ],
)
def test_a_damaged_page_costs_that_page_only(tmp_path: Path, page: bytes, reason: str) -> None:
    whole = a_dump(*(a_page(f"T{i}", f"Some text of page {i}.") for i in range(20)))
    place = whole.index(b"<page><title>T7<")
    path = tmp_path / "x.xml"
    path.write_bytes(whole[:place] + page + whole[place:])
    articles, rejected = read(path)
    assert rejected == {reason: 1}
    lost = {"T7"} if page == b"<page>" else set()
    assert {article.title for article in articles} == {f"T{i}" for i in range(20)} - lost


def test_reading_can_begin_at_any_page(tmp_path: Path) -> None:
    path = tmp_path / "x.xml.gz"
    path.write_bytes(gzip.compress(WHOLE))
    dump = Dump(path)
    pages = list(dump.pages(0))
    assert len(pages) == 300
    for start in (0, 1, 150, 299, 300, 999):
        assert list(dump.pages(start)) == pages[start:]


def test_no_page_is_looked_for_without_end(tmp_path: Path) -> None:
    assert MAX_PAGE_BYTES < 2**30
    path = tmp_path / "x.xml"
    with path.open("wb") as handle:
        handle.write(b"<mediawiki><page>")
        handle.truncate(MAX_PAGE_BYTES + 2**22)  # sparse
    with pytest.raises(Damaged, match="no end of a page in 256 MiB"):
        Dump(path)


def multistream(folder: Path, *, pages: list[str], size: int, packed: bool = True) -> Path:
    """A dump as Wikimedia's: the head, `size` pages a stream, the end; and its index."""
    whole = a_dump(*pages).decode()
    head = whole[: whole.index("<page>")]
    data, lines = bz2.compress(head.encode()), []
    for first in range(0, len(pages), size):
        part = pages[first : first + size]
        lines += [f"{len(data)}:{first + k}:Title: {k}\n" for k in range(len(part))]
        data += bz2.compress("".join(part).encode())
    data += bz2.compress(b"</mediawiki>\n")
    path = folder / "xx-pages-articles-multistream3.xml-p1p999.bz2"
    path.write_bytes(data)
    text = "".join(lines).encode()
    index = folder / "xx-pages-articles-multistream-index3.txt-p1p999.bz2"
    if packed:
        index.write_bytes(bz2.compress(text))
    else:
        index.with_suffix("").write_bytes(text)
    return path


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_multistream_dump_is_read_from_any_page(tmp_path: Path, size: int, packed: bool) -> None:
    pages = [a_page(f"T{i}", f"Some text of page {i * i}.", number=i) for i in range(60)]
    path = multistream(tmp_path, pages=pages, size=size, packed=packed)
    plain = tmp_path / "plain.xml"
    plain.write_bytes(a_dump(*pages))
    one, many = Dump(plain), Dump(path)
    assert (one.seeks, many.seeks) == (False, True)
    assert many.site == one.site
    for start in (0, 1, 6, 7, 8, 59, 60, 200):
        assert list(many.pages(start)) == list(one.pages(start)), start


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"100:1:A\n50:2:B\n", "is damaged"),
        (b"abc:1:A\n", r"is damaged \(line 1\)"),
        (b"", "is damaged"),
        (b"11:1:A\n12:2:B\n", "belongs to another file"),
        (b"123\n", r"is damaged \(line 1\)"),
    ],
)
def test_an_index_that_does_not_fit_is_named(tmp_path: Path, index: bytes, message: str) -> None:
    path = multistream(tmp_path, pages=[a_page("A", "text")], size=1)
    (beside,) = tmp_path.glob("*index*")
    beside.write_bytes(bz2.compress(index))
    with pytest.raises(Damaged, match=f"its index .*{beside.name} {message}"):
        list(Dump(path).pages(0))


def test_an_index_that_lacks_a_line_is_named(tmp_path: Path) -> None:
    """Every page behind it would have another number, and some reader would miss one."""
    pages = [a_page(f"T{i}", f"Page {i}.", number=i) for i in range(20)]
    path = multistream(tmp_path, pages=pages, size=5, packed=False)
    (index,) = tmp_path.glob("*index*")
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join(lines[:7] + lines[8:]))
    found = []
    with pytest.raises(Damaged, match=r"its index .* names another page 10"):
        found.extend(Dump(path).pages(0))
    assert len(found) == 9
    index.unlink()
    cut = bz2.compress(b"".join(lines))[:-9]
    index.with_name(index.name + ".bz2").write_bytes(cut)
    with pytest.raises(Damaged, match="ends too early"):
        list(Dump(path).pages(0))


@pytest.mark.parametrize(
    "name", [*sorted({*encodings.aliases.aliases.values()}), "idna", "undefined"]
)
def test_an_encoding_of_texts_is_read_and_another_one_named(tmp_path: Path, name: str) -> None:
    """Whatever Python calls a codec: rot13 and zip are no encodings of a dump."""
    plain = (
        f"""<?xml version='1.0' encoding='{name}'?>{a_dump(a_page("A", "Some words.")).decode()}"""
    )
    path = tmp_path / "x.xml"
    for data in (plain.encode(), plain.encode().replace(b"words", b"w\xe9\xff\x00rds")):
        path.write_bytes(data)
        with contextlib.suppress(Damaged):
            articles, rejected = read(path)
            assert [article.title for article in articles] == ["A"] or rejected


def test_a_real_english_dump(real_data: Path) -> None:
    (path,) = (real_data / "mediawiki_dump").glob("enwiki-latest-*.bz2")
    articles, skipped = read(path)
    assert len(articles) == 106
    assert skipped == {"redirect": 100}
    assert articles[0].url == "https://en.wikipedia.org/wiki/Anarchism"
    assert articles[0].text.startswith("Anarchism is a political philosophy that advocates self-")
    text = "\n".join(article.text for article in articles)
    for left_over in ("[[", "]]", "{{", "}}", "''", "<ref", "&nbsp;", "thumb|", "  ", "( "):
        assert left_over not in text


def test_a_real_dump_in_utf16(real_data: Path) -> None:
    (path,) = (real_data / "mediawiki_dump").glob("bgwiki-*.bz2")
    articles, skipped = read(path)
    assert [article.title for article in articles] == ["Григориански календар"]
    assert skipped == {"not an article": 2}

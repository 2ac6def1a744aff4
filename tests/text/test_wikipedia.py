"""Every construct of wiki markup, every kind of page, and every file that is no dump."""

import bz2
import gzip
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from toolkit.files import BadInput
from toolkit.text.shards import Article
from toolkit.text.wikipedia import UnreadableMarkup, clean_markup, read_articles

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
    skipped: Counter[str] = Counter()
    articles = list(read_articles(path, on_skip=lambda reason, place: skipped.update([reason])))
    return articles, skipped


@pytest.mark.parametrize(
    ("markup", "prose"),
    [
        ("A {{cite|x={{y|z}}}}b.", "A b."),
        ("A<ref>note {{c}}</ref> b<ref name=x /> c.", "A b c."),
        ("A <!-- b --> c.", "A c."),
        ("A\n{| class=x\n|-\n| b\n{|\n| c\n|}\n|}\nd.", "A\nd."),
        ("A\n{| class=x\n|-\n| never closed", "A"),
        ("<table><tr><td>b</td></tr></table>A.", "A."),
        ("[[File:x.jpg|thumb|A [[nested|link]] here]]A.", "A."),
        ("[[Image:x.jpg]][[Category:Cats|x]][[ file : y.png]]A.", "A."),
        ("[[:Category:Cats]]", ":Category:Cats"),
        ("[[fr:Chat]]A [[cat]] and [[dog|dogs]] and [[a (b)|]].", "A cat and dogs and a (b)."),
        ("[http://x.org A site] and [http://y.org] bare.", "A site and bare."),
        ("== Head ==\nA.\n=== Sub ===\nB.", "A.\nB."),
        ("A.\n== See also ==\n* b\n=== c ===\nd\n== Life ==\nE.", "A.\nE."),
        ("A.\n==References==\n{{reflist}}\n==External links==\n* [http://x y]", "A."),
        ("Some:\n* one\n** [[two]]\n# three\nAfter.", "Some:\none\ntwo\nthree\nAfter."),
        ("; term\n: meaning", "term\nmeaning"),
        ("<ul><li>one</li><li>two</li></ul>", "one\ntwo"),
        ("'''Bold''', ''it'', '''''both''''' and L''''eau'''.", "Bold, it, both and L'eau."),
        ("a&nbsp;b &amp; c &ndash; d&#233;", "a b & c – dé"),
        ("A &#5; b.", "A b."),
        ("One\nsame.\n\nTwo\n\n\nthree.", "One same.\nTwo\nthree."),
        ("It is {{convert|5|km|mi}} long{{snd}}{{lang|fr|très}} {{nowrap|so}}.", None),
        ("Rome ({{IPA|x}}; {{lang-la|y}}) is ( {{z}} ) a city , and ( old {{z}} ), {{z}}.", None),
        ("A <math>x^2</math> b <code>c</code> <br/> d<gallery>e</gallery>.", "A b c d."),
        ("A <nowiki>[[b]]</nowiki> __NOTOC__ <unclosed c.", "A b <unclosed c."),
        ("A <ref name=x>never closed", "A never closed"),
        ("{{unclosed A [[b] c.", "unclosed A b] c."),
        ("----\n\n***\n\n|", ""),
    ],
)
def test_markup_becomes_prose(markup: str, prose: str | None) -> None:
    special = {
        "It": "It is 5 km long – très so.",
        "Ro": "Rome is a city, and (old).",
    }
    assert clean_markup(markup) == (special[markup[:2]] if prose is None else prose)


def test_a_page_that_would_take_hours_is_refused() -> None:
    with pytest.raises(UnreadableMarkup, match="unclosed tags"):
        clean_markup("<a " * 100_000)


@pytest.mark.parametrize("pack", [bytes, bz2.compress, gzip.compress])
def test_only_articles_are_kept(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    path = tmp_path / "misnamed.xml"
    path.write_bytes(
        pack(
            a_dump(
                a_page("Old", "#REDIRECT [[New]]", head='<redirect title="New" />'),
                a_page("Older", "#redirect [[New]]"),
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
    assert skipped == {"redirect": 2, "not an article": 1, "empty": 1, "unreadable markup": 1}


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
    "empty.xml.bz2": (b"", "is empty"),
    "cut.xml.bz2": (bz2.compress(WHOLE)[:-200], "ends too early; download it again"),
    "cut.xml.gz": (gzip.compress(WHOLE)[:-200], "ends too early; download it again"),
    "cut.xml": (WHOLE[: len(WHOLE) // 2], "is cut short or damaged after"),
    "flipped.xml.bz2": (b"BZh9" + b"\x00" * 99, "is damaged"),
    "flipped.xml.gz": (gzip.compress(WHOLE)[:10] + b"\xff" * 99, "is damaged"),
    "prose.xml": (b"Just some words.\n", "is no MediaWiki XML dump"),
    "prose.xml.bz2": (bz2.compress(b"Just some words.\n"), "is no MediaWiki XML dump"),
    "image.xml": (b"\x89PNG\r\n\x1a\n\x00\x00", "is no MediaWiki XML dump"),
    "other.xml": (b"<html><body>x</body></html>", "its root is <html>"),
    "odd.xml": (b"<mediawiki><page><id>x</id></page></mediawiki>", "is no MediaWiki XML dump"),
}


@pytest.mark.parametrize("name", BAD_DUMPS)
def test_a_file_that_is_no_whole_dump_is_named(tmp_path: Path, name: str) -> None:
    content, message = BAD_DUMPS[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_dump_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read(tmp_path / "absent.xml")


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

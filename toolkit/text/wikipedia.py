"""Articles of a MediaWiki dump as plain prose, one at a time.

Knows the XML of a dump (through mwxml) and wiki markup (through mwparserfromhell). Refuses to
know what becomes of an article: sentences, shards and tokens are other modules.
"""

import bz2
import gzip
import io
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import ParseError

import mwparserfromhell
import mwxml
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Node, Tag, Template
from mwparserfromhell.nodes import Text as PlainText
from mwparserfromhell.nodes import Wikilink as Link
from mwparserfromhell.parser import ParserError
from mwparserfromhell.wikicode import Wikicode
from mwxml.element_iterator import ElementIterator
from mwxml.errors import MalformedXML

from toolkit.files import BadInput
from toolkit.text.shards import Article

RULES_VERSION = (
    1  # raise it when `clean_markup` gives another text: it is part of a shard's identity
)

FILE_NAMESPACE, CATEGORY_NAMESPACE = 6, 14
HIDDEN_LINKS = frozenset({"file", "image", "media", "category"})
DROPPED_SECTIONS = frozenset(
    {
        "bibliography",
        "citations",
        "external links",
        "footnotes",
        "further reading",
        "notes",
        "notes and references",
        "references",
        "references and notes",
        "see also",
        "sources",
        "works cited",
    }
)
HIDDEN_TAGS = re.compile(
    "ref|references|table|gallery|math|chem|ce|pre|source|syntaxhighlight|timeline|score|hiero|"
    "imagemap|graph|mapframe|maplink|templatedata|includeonly|inputbox|categorytree|style|script|"
    "section"
)
BLOCK_TAGS = re.compile("blockquote|center|dd|div|dl|dt|h[1-6]|hr|li|ol|p|poem|ul")
ITEM_TAGS = frozenset({"li", "dd", "dt"})

# Templates that carry words of the sentence they stand in: without them "is 5 km long" becomes
# "is long". All others are infoboxes, citations, notices: dropped.
WORDS_AT: dict[str, tuple[str, ...]] = {
    "abbr": ("1",),
    "blockquote": ("1", "text"),
    "convert": ("1", "2"),
    "cquote": ("1",),
    "cvt": ("1", "2"),
    "em": ("1",),
    "ill": ("1",),
    "interlanguage link": ("1",),
    "lang": ("2",),
    "linktext": ("1",),
    "nobr": ("1",),
    "nowrap": ("1",),
    "quote": ("1", "text"),
    "small": ("1",),
    "smallcaps": ("1",),
    "strong": ("1",),
    "transl": ("2", "3"),
    "transliteration": ("2", "3"),
    "val": ("1",),
}
WORDS_OF = {
    "'": "'",
    "--": "—",
    "mdash": "—",
    "nbsp": " ",
    "ndash": "–",
    "snd": " – ",
    "spaced ndash": " – ",
    "spnd": " – ",
    "–": "–",
    "—": "—",
}

MAX_UNCLOSED_TAGS = 1000  # real pages have three at most; the parser's time grows with the square

_ITEM = "\x02"  # begins a list item; XML forbids it, and unlike \x1e it survives str.strip
_QUOTES = re.compile(r"'{2,}")
_LANGUAGE_LINK = re.compile(r"[a-z]{2,3}(-[a-z]+)*:")
_STRAY_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(\s[^<>]*)?/?>")
_OPENING_TAG = re.compile(r"<(?!br|hr|li|p\b|dd|dt|td|tr|th)[a-zA-Z]")
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)
# What removed templates and formulas leave behind, in the order in which it is mended.
_MENDS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}", " "),
        (r"\s+", " "),
        (r"([(\[])[\s,;:]+", r"\1"),
        # The look-behind lets a match begin once in a run: without it the time is quadratic.
        (r"(?<![\s,;:])[\s,;:]++([)\]])", r"\1"),
        (r"\(\)|\[\]|\"\"|“”", ""),
        (r"\s+", " "),
        (r" ([,.;])(?=\s|$)", r"\1"),
        (r"([,;])(?:\s*[,;])+", r"\1"),
        (r",\.(?=\s|$)", "."),
    )
)


class UnreadableMarkup(ValueError):
    """A page that the parser gives up, or would spend hours on."""


@dataclass(frozen=True)
class _Site:
    """What the head of a dump says: where pages live, and its names of hidden links."""

    page_url: str = ""
    hidden_links: frozenset[str] = HIDDEN_LINKS


def read_articles(path: Path, *, on_skip: Callable[[str, str], None]) -> Iterator[Article]:
    """Yield the articles of a dump (.xml, or the same in bz2 or gzip) in file order.

    Other pages are dropped, and `on_skip` is called with the reason ("redirect", "not an
    article" for another namespace, "empty" when no prose is left, "unreadable markup") and the
    place. Of several revisions the last counts. Memory does not grow with the dump. Raises
    `BadInput` for a file that is absent, empty, cut short, damaged, or no dump.
    """
    for page, wikitext, site in _pages(path):
        place = f"page {page.id} ({page.title})"
        if page.redirect is not None or _REDIRECT.match(wikitext):
            on_skip("redirect", place)
        elif page.namespace != 0:
            on_skip("not an article", place)
        else:
            try:
                text = clean_markup(wikitext, hidden_links=site.hidden_links)
            except UnreadableMarkup:
                on_skip("unreadable markup", place)
                continue
            if text:
                url = page_url(site.page_url, title=page.title)
                yield Article(id=str(page.id), title=page.title, url=url, text=text)
            else:
                on_skip("empty", place)


def page_url(prefix: str, *, title: str) -> str:
    """The address of a page; empty where the dump does not name its site."""
    return prefix and prefix + quote(title.replace(" ", "_"), safe=";@$!*(),/~:")


def clean_markup(wikitext: str, *, hidden_links: frozenset[str] = HIDDEN_LINKS) -> str:
    """The prose of a page: paragraphs and list items, one per line, without markup.

    Headings go (a heading is no sentence), and with them the whole of `DROPPED_SECTIONS`.
    `hidden_links` are the lower-case namespaces whose links show nothing, such as "file".
    Raises `UnreadableMarkup`.
    """
    num_closed = wikitext.count("</") + wikitext.count("/>")
    if len(_OPENING_TAG.findall(wikitext)) - num_closed > MAX_UNCLOSED_TAGS:
        raise UnreadableMarkup(f"more than {MAX_UNCLOSED_TAGS} unclosed tags")
    try:
        # No style tags: unbalanced quotes, common in dumps, would hide whole paragraphs.
        code = mwparserfromhell.parse(wikitext, skip_style_tags=True)
    except ParserError as error:
        raise UnreadableMarkup(str(error)) from error
    return _tidy("".join(_visible(code, hidden_links=hidden_links)))


def _visible(code: Wikicode, *, hidden_links: frozenset[str]) -> Iterator[str]:
    dropping = 0  # level of the heading whose section is being dropped
    for node in code.nodes:
        if isinstance(node, Heading):
            if not dropping or node.level <= dropping:
                title = node.title.strip_code().strip().casefold()
                dropping = node.level if title in DROPPED_SECTIONS else 0
            yield "\n\n"
        elif not dropping:
            yield from _visible_node(node, hidden_links=hidden_links)


def _visible_node(node: Node, *, hidden_links: frozenset[str]) -> Iterator[str]:
    if isinstance(node, PlainText):
        yield _plain(str(node.value))
    elif isinstance(node, HTMLEntity):
        yield _character(node)
    elif isinstance(node, Link):
        yield from _link(node, hidden_links=hidden_links)
    elif isinstance(node, ExternalLink):
        if node.title is not None:
            yield from _visible(node.title, hidden_links=hidden_links)
    elif isinstance(node, Template):
        yield from _template(node, hidden_links=hidden_links)
    elif isinstance(node, Tag):
        yield from _tag(node, hidden_links=hidden_links)


def _character(entity: HTMLEntity) -> str:
    try:
        character = entity.normalize()
    except (ValueError, OverflowError):
        return " "
    # &#0; and &#xD800; can be written, but neither UTF-8 nor a reader of the text can bear them.
    return " " if unicodedata.category(character[0]) in ("Cc", "Cs") else character


def _plain(text: str) -> str:
    # Four quotes are an apostrophe before bold, as in ''L''''eau''.
    text = _QUOTES.sub(lambda run: "'" if len(run.group()) == 4 else "", text)
    return _MAGIC_WORD.sub("", _STRAY_TAG.sub(" ", text))


def _link(node: Link, *, hidden_links: frozenset[str]) -> Iterator[str]:
    target = str(node.title).strip()
    namespace = target.partition(":")[0].strip().casefold() if ":" in target else ""
    if namespace in hidden_links:
        return
    if node.text is not None and str(node.text).strip():
        yield from _visible(node.text, hidden_links=hidden_links)
    elif not _LANGUAGE_LINK.match(target):
        yield from _visible(node.title, hidden_links=hidden_links)


def _template(node: Template, *, hidden_links: frozenset[str]) -> Iterator[str]:
    name = str(node.name).strip().casefold()
    yield WORDS_OF.get(name, "")
    words = [node.get(key).value for key in WORDS_AT.get(name, ()) if node.has(key)]
    for number, value in enumerate(words):
        yield " " if number else ""
        yield from _visible(value, hidden_links=hidden_links)


def _tag(node: Tag, *, hidden_links: frozenset[str]) -> Iterator[str]:
    name = str(node.tag).strip().casefold()
    if HIDDEN_TAGS.fullmatch(name):
        return
    if name == "br":
        yield "\n"
    elif name in ITEM_TAGS:
        yield f"\n{_ITEM}"
    elif BLOCK_TAGS.fullmatch(name):
        yield "\n\n"
    if node.contents is not None:
        yield from _visible(node.contents, hidden_links=hidden_links)
    # The text of a wiki list item follows its tag; an HTML item holds its text and ends here.
    if BLOCK_TAGS.fullmatch(name) and not node.wiki_markup:
        yield "\n\n"


def _tidy(text: str) -> str:
    """Join the lines of each paragraph, mend gaps, and keep what still has a letter."""
    paragraphs: list[list[str]] = [[]]
    for line in text.split("\n"):
        stripped = line.strip()
        if stripped.startswith(("|", "{|", "! ")):  # a row of a table that was never closed
            continue
        if not stripped or stripped.startswith(_ITEM):
            paragraphs.append([])
        paragraphs[-1].append(stripped.replace(_ITEM, " "))
        if stripped.startswith(_ITEM):
            paragraphs.append([])
    mended = (_mend(" ".join(lines)) for lines in paragraphs)
    return "\n".join(line for line in mended if any(map(str.isalnum, line)))


def _mend(text: str) -> str:
    for pattern, replacement in _MENDS:
        text = pattern.sub(replacement, text)
    return text.strip()


def _pages(path: Path) -> Iterator[tuple[Any, str, _Site]]:
    """Yield mwxml pages with their last wikitext; all failures of the file are `BadInput`."""
    num_pages = 0
    try:
        with _open_dump(path) as handle:
            root = ElementIterator.from_file(handle)
            if root.tag != "mediawiki":
                raise BadInput(
                    f"{path}: is XML, but no MediaWiki dump (its root is <{root.tag}>); "
                    "give a pages-articles file"
                )
            for page in _walk(root):
                yield page
                num_pages += 1
    except EOFError as error:
        raise BadInput(f"{path}: ends too early; download it again") from error
    except (OSError, zlib.error) as error:
        raise BadInput(f"{path}: is damaged ({error}); download it again") from error
    except (ParseError, MalformedXML) as error:
        if num_pages:
            raise BadInput(
                f"{path}: is cut short or damaged after {num_pages} pages; download it again"
            ) from error
        raise BadInput(
            f"{path}: is no MediaWiki XML dump; give a pages-articles .xml, .xml.bz2 or .xml.gz"
        ) from error


def _open_dump(path: Path) -> io.BufferedIOBase:
    """Open by what the file begins with, not by its name: dumps are renamed often."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give a pages-articles dump")
    with path.open("rb") as handle:
        magic = handle.read(3)
    if not magic:
        raise BadInput(f"{path}: is empty; download it again")
    if magic == b"BZh":
        return bz2.open(path)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.open(path)
    return path.open("rb")


def _walk(root: ElementIterator) -> Iterator[tuple[Any, str, _Site]]:
    # Not mwxml.Dump: it refuses an export without <siteinfo>, and hides the root (see below).
    site = _Site()
    namespaces: dict[str, Any] = {}
    for element in root:
        if element.tag == "siteinfo":
            info = mwxml.SiteInfo.from_element(element)
            namespaces = {namespace.name: namespace for namespace in info.namespaces or ()}
            site = _site_of(info)
        elif element.tag == "page":
            try:
                page = mwxml.Page.from_element(element, namespaces)
                wikitext = ""
                for revision in page:
                    wikitext = revision.text or ""
            except (AttributeError, TypeError, ValueError) as error:
                raise MalformedXML(str(error)) from error
            yield page, wikitext, site
            # The root keeps an empty element per page: 2 GiB for the English Wikipedia.
            del root.element[:-1]


def _site_of(info: Any) -> _Site:
    hidden = {
        namespace.name.casefold()
        for namespace in info.namespaces or ()
        if namespace.id in (FILE_NAMESPACE, CATEGORY_NAMESPACE)
    }
    base = info.base or ""
    return _Site(page_url=base[: base.rfind("/") + 1], hidden_links=HIDDEN_LINKS | hidden)

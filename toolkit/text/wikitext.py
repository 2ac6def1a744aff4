"""Turns wiki markup into plain prose. Knows the parser (mwparserfromhell) and which markup has
words.

Refuses to know dumps and pages: see `dump`.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import quote

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Node, Tag, Template
from mwparserfromhell.nodes import Text as PlainText
from mwparserfromhell.nodes import Wikilink as Link
from mwparserfromhell.parser import ParserError
from mwparserfromhell.wikicode import Wikicode

from toolkit.text.markup_cost import costs_too_much, num_unclosed, part_links

# Raise it when `clean_markup` would give another text: it is part of a shard's identity.
RULES_VERSION = 3

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

# Templates with words of the sentence around them, and the parameters that hold the words. Without
# them "is 5 km long" would become "is long". All other templates (infoboxes, citations, notices)
# are dropped.
WORDS_AT: dict[str, tuple[str, ...]] = {
    "abbr": ("1",),
    "blockquote": ("1", "text"),
    "cquote": ("1",),
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

# What separates the two numbers of {{convert|400|to|670|mm}}, and how the page shows it.
MEASURES = frozenset({"convert", "cvt"})
RANGES = {
    "-": "–",
    "–": "–",
    "−": "–",
    "/": "/",
    "to": " to ",
    "to-": " to ",
    "through": " through ",
    "to(-)": " to ",
    "to about": " to about ",
    "and": " and ",
    "and(-)": " and ",
    "and/or": " and/or ",
    "&": " & ",
    "or": " or ",
    "or(-)": " or ",
    "by": " by ",
    "by(x)": " by ",
    "x": " × ",
    "×": " × ",
    "xx": " × ",
    "x(-)": " × ",
    "*": " × ",
    "+/-": " ± ",
    "+/−": " ± ",
    "±": " ± ",
    "+": " + ",
    ",": ", ",
    ", and": ", and ",
    ", or": ", or ",
}
DEGREES = {"C": "°C", "F": "°F"}  # units that the page shows with a sign that the template lacks
# Units of the second number of one measure: {{convert|6|ft|4|in|cm}}.
SMALLER_UNITS = frozenset({"ft", "in", "lb", "oz", "yd", "ozt", "chain", "furlong"})

# References and comments show nothing, but are a quarter of a page and cost the parser most time.
# So they are removed before it.
_REFERENCE = re.compile(
    # <ref ... />, or <ref ...> up to </ref> without another <ref between them: if there is another,
    # the first one was never closed.
    r"<ref(?=[\s/>])[^<>]*(?:/>|(?<!/)>[^<]*+(?:<(?!/?ref[\s/>])[^<]*+)*+</ref\s*>)",
    re.IGNORECASE,
)
_TAKEN = "\x03"  # replaces them; with nothing there, a heading could begin where a reference was
# Marks the start of a list item; XML forbids it, and str.strip (unlike \x1e) keeps it.
_ITEM = "\x02"
_NUMBER = re.compile(r"[-−+]?\d")
_QUOTES = re.compile(r"'{2,}")
# The editions of Wikipedia. A link that begins with one of these is shown beside the page, not in
# its text (meta.wikimedia.org/wiki/List_of_Wikipedias, with older names of some editions).
_EDITIONS = """
aa ab af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de
dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy ia
id ie ig ii ik io is it iu ja jv ka kg ki kk kl km kn ko ks ku kv kw ky la lb lg li ln lo lt
lv mg mh mi mk ml mn mr ms mt my na nb ne ng nl nn no nr nv ny oc om or os pa pi pl ps pt qu
rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl
tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu ace ady als alt ami ang
ann anp arc ary arz ast atj avk awa azb ban bar bat-smg bbc bcl bdr be-tarask be-x-old bew
bh bjn blk bpy btm bug bxr cbk-zam cdo ceb cho chr chy ckb crh csb dag dga din diq dsb dtp
dty eml ext fat fiu-vro fon frp frr fur gag gan gcr glk gom gor got gpe gsw guc gur guw hak
haw hif hsb hyw iba igl ilo inh jam jbo kaa kab kbd kbp kcg kge knc koi krc ksh kus lad lbe
lez lfn lij lld lmo lrc ltg lzh mad mai map-bms mdf mhr min mni mnw mos mrj mus mwl myv mzn
nah nan nap nds nds-nl new nia nov nqo nrm nso olo pag pam pap pcd pcm pdc pfl pih pms pnb
pnt pwn rki rmy roa-rup roa-tara rsk rue rup sah sat scn sco sgs shi shn simple skr smn srn
stq syl szl szy tay tcy tdd tet tig tly tpi trv tum tyv udm vec vep vls vro war wuu xal xmf
yue zea zgh zh-classical zh-cn zh-min-nan zh-tw zh-yue
"""
_LANGUAGES = frozenset(_EDITIONS.split())
_STRAY_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(\s[^<>]*)?/?>")
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
# Repairs of what removed templates and formulas leave behind, in the order of application.
_MENDS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}", " "),
        (r"\s+", " "),
        (r"([(\[])[\s,;:]+", r"\1"),
        # The look-behind lets a match begin only at the start of a run; otherwise the time would be
        # quadratic.
        (r"(?<![\s,;:])[\s,;:]++([)\]])", r"\1"),
        (r"\(\)|\[\]|\"\"|“”", ""),
        (r"\s+", " "),
        (r" ([,.;])(?=\s|$)", r"\1"),
        (r"([,;])(?:\s*[,;])+", r"\1"),
        (r",\.(?=\s|$)", "."),
    )
)


_REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)


class UnreadableMarkup(ValueError):
    """A page that the parser cannot read, or would need hours for."""


def is_redirect(wikitext: str) -> bool:
    """Whether a page only points to another (in English; dumps also mark such pages)."""
    return bool(_REDIRECT.match(wikitext))


def page_url(prefix: str, *, title: str) -> str:
    """The address of a page; empty if the dump does not name its site."""
    return prefix and prefix + quote(title.replace(" ", "_"), safe=";@$!*(),/~:")


def clean_markup(wikitext: str, *, hidden_links: frozenset[str] = HIDDEN_LINKS) -> str:
    """The prose of a page: paragraphs and list items, one per line, without markup.

    Headings are dropped, since they are no sentences, and so are all `DROPPED_SECTIONS`.
    `hidden_links` are the lower-case namespaces whose links show nothing, such as "file".
    Raises `UnreadableMarkup`.
    """
    # Inside <nowiki> a comment or a reference is text that the page shows.
    if "<nowiki" not in wikitext.casefold():
        wikitext = _REFERENCE.sub(_TAKEN, _without_comments(wikitext))
    wikitext = part_links(wikitext, by=_TAKEN)
    if costs_too_much(wikitext):
        raise UnreadableMarkup(f"{num_unclosed(wikitext)} brackets and tags are not closed")
    try:
        # Do not parse style tags: unbalanced quotes, common in dumps, would hide whole paragraphs.
        code = mwparserfromhell.parse(wikitext, skip_style_tags=True)
    except ParserError as error:
        raise UnreadableMarkup(str(error)) from error
    return _tidy("".join(_visible(code, hidden_links=hidden_links)).replace(_TAKEN, ""))


def _without_comments(wikitext: str) -> str:
    """The text with `_TAKEN` in place of each comment. A regular expression would search the rest
    of the page for every "<!--" without an end."""
    pieces, place = [], 0
    while (begin := wikitext.find("<!--", place)) >= 0:
        end = wikitext.find("-->", begin + 4)
        if end < 0:
            break
        pieces += [wikitext[place:begin], _TAKEN]
        place = end + 3
    return "".join([*pieces, wikitext[place:]])


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
    # &#0; and &#xD800; are valid markup, but readers of the text and UTF-8 cannot handle them.
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
    elif namespace not in _LANGUAGES:
        shown = "".join(_visible(node.title, hidden_links=hidden_links))
        # A colon in front makes a hidden link visible: [[:Category:Cats]], [[:de:Haus]].
        yield shown.lstrip()[1:] if target.startswith(":") else shown


def _template(node: Template, *, hidden_links: frozenset[str]) -> Iterator[str]:
    name = str(node.name).strip().casefold()
    yield WORDS_OF.get(name, "")
    if name not in WORDS_AT and name not in MEASURES:
        return
    values = {str(given.name).strip(): given.value for given in node.params}
    if name in MEASURES:
        numbered = (values.get(str(number)) for number in range(1, len(values) + 1))
        parameters = itertools.takewhile(lambda value: value is not None, numbered)
        yield _measure(
            ["".join(_visible(value, hidden_links=hidden_links)) for value in parameters]
        )
        return
    words = [values[key] for key in WORDS_AT[name] if key in values]
    for number, value in enumerate(words):
        yield " " if number else ""
        yield from _visible(value, hidden_links=hidden_links)


def _measure(values: list[str]) -> str:
    """The measure as a page shows it: a number and its unit, or two numbers with a word between
    them and their unit. `values` are the parameters of a `convert` template; those after the first
    unit, which it converts to, are left out."""
    given = [value.strip() for value in values]
    words = given[:1]
    place = 1
    while place + 1 < len(given):
        if given[place] in RANGES:
            words += [RANGES[given[place]], given[place + 1]]
            place += 2
        elif given[place + 1] in RANGES and _NUMBER.match("".join(given[place + 2 : place + 3])):
            words += [" ", _unit(given[place]), RANGES[given[place + 1]], given[place + 2]]
            place += 3
        else:
            break
    words += [" ", *map(_unit, given[place : place + 1])]
    if given[place + 2 : place + 3] and given[place + 2] in SMALLER_UNITS:
        words += [" ", given[place + 1], " ", given[place + 2]]
    return "".join(words).rstrip()


def _unit(name: str) -> str:
    return DEGREES.get(name, name)


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
    # The text of a wiki list item comes after its tag; an HTML item contains its text, so it ends
    # here.
    if BLOCK_TAGS.fullmatch(name) and not node.wiki_markup:
        yield "\n\n"


def _tidy(text: str) -> str:
    """Join the lines of each paragraph, repair gaps, and keep lines with a letter or digit."""
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

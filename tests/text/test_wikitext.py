"""Every construct of wiki markup."""

import bz2
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.text import wikitext as wikitext_module
from toolkit.text.dump import Dump, read_page
from toolkit.text.readers import DumpPages
from toolkit.text.wikitext import RANGES, UnreadableMarkup, clean_markup


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
        (
            "[[:Category:Cats]] and [[:de:Haus]], [[ :fr:Été ]].",
            "Category:Cats and de:Haus, fr:Été.",
        ),
        ("[[:de:Haus|shown]] [[de:Haus]]", "shown"),
        ("[[re:Zero]] and [[Ion: a play]].[[zh-min-nan:A]][[NDS:B]]", "re:Zero and Ion: a play."),
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


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("400|to|670|mm|1|abbr=on", "400 to 670 mm"),
        ("20|-|25|cm|in", "20–25 cm"),
        ("15|–|17|in", "15–17 in"),
        ("110|and|125|mph|km/h", "110 and 125 mph"),
        ("60|and(-)|80|kg", "60 and 80 kg"),
        ("193.3|by|69.5|mi|km", "193.3 by 69.5 mi"),
        ("2|x|3|x|4|m", "2 × 3 × 4 m"),
        ("5|or|6|km", "5 or 6 km"),
        ("100|+/-|5|m", "100 ± 5 m"),
        ("2|to|10|in|mm|order=flip|-1", "2 to 10 in"),
        ("6|ft|4|in|cm|0", "6 ft 4 in"),
        (" 230 | acre|ha", "230 acre"),
        ("1=5|2=km", "5 km"),
        ("-33|°C|°F|1", "-33 °C"),
        ("5|&|6|km|mi", "5 & 6 km"),
        ("5|/|6|km|mi", "5/6 km"),
        ("5|−|6|km|mi", "5–6 km"),
        ("5|+/−|1|km|mi", "5 ± 1 km"),
        ("5|to-|6|km|mi", "5 to 6 km"),
        ("5|through|6|km|mi", "5 through 6 km"),
        ("5|and/or|6|km|mi", "5 and/or 6 km"),
        ("5|ft|to|6|ft|m", "5 ft to 6 ft"),
        ("-5|C|to|−6|C|F", "-5 °C to −6 °C"),
        ("50|-|60|F|C", "50–60 °F"),
        ("300|K|C", "300 K"),
        ("5|km|0", "5 km"),
        ("12", "12"),
        ("", ""),
    ],
)
def test_measures_are_read_as_they_stand_on_the_page(given: str, shown: str) -> None:
    for name in ("convert", "Cvt"):
        assert clean_markup(f"It is {{{{{name}|{given}}}}} long.") == " ".join(
            f"It is {shown} long.".split()
        )


def test_every_measure_of_the_real_dump_ends_in_its_unit(real_data: Path) -> None:
    """No "to", "and" or dash where the unit should stand: 30 of 437 had one."""
    found = []
    for path in (real_data / "mediawiki_dump").glob("*.bz2"):
        wikitext = bz2.decompress(path.read_bytes())
        if path.name.startswith("enwiki"):
            found += re.findall(
                r"\{\{(?:convert|cvt)\|[^{}]*\}\}", wikitext.decode(), re.IGNORECASE
            )
    assert len(found) > 400
    for template in found:
        shown = clean_markup(template)
        last = shown.rpartition(" ")[2]
        assert re.fullmatch(r"[^\d\s]\S*|\d+", last) and last not in RANGES, (template, shown)
        given = re.split(r"[|{}]\s*", template)
        assert last in given or last.removeprefix("°") in given, (template, shown)


def test_a_page_that_would_take_hours_is_refused() -> None:
    with pytest.raises(UnreadableMarkup, match="brackets and tags are not closed"):
        clean_markup("<a " * 100_000)


def parsed_whole(wikitext: str) -> str:
    """`clean_markup` without what it takes out before it parses."""
    with pytest.MonkeyPatch.context() as patch:
        never = re.compile(r"(?!)")
        patch.setattr(wikitext_module, "_without_comments", lambda text: text)
        patch.setattr(wikitext_module, "_REFERENCE", never)
        return clean_markup(wikitext)


PIECES = [
    "<ref>note {{c|d}} [[e]]</ref>",
    '<ref name="a b" />',
    "<REF name=x>two\n\nlines</Ref >",
    "<ref/>",
    "<references/>",
    "<!-- a\ncomment -->",
    "words ",
    "[[link|shown]] ",
    "{{cite|x=1}}",
    "\n\n",
    "== Head ==\n",
    "<b>bold</b>",
    "<br/>",
    "a < b > c ",
    "''",
    "{|\n|-\n| cell\n|}\n",
    "* item\n",
    "<refer>no</refer>",
]


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14))
def test_taking_references_out_first_changes_nothing(pieces: list[str]) -> None:
    markup = "".join(pieces)
    assert clean_markup(markup) == parsed_whole(markup), markup


@pytest.mark.parametrize(
    ("markup", "prose"),
    [
        # A reference hides what it holds, whatever that is: here the parser itself gives up.
        ("A<ref>b</i> c</ref> d.", "A d."),
        ("A<ref>b <!-- c </ref> --> d</ref> e.", "A e."),
        # One that is never closed hides nothing after it.
        ("A<ref>b <ref>c</ref> d.", "A b d."),
        ("A <!-- never closed", "A <!-- never closed"),
        ("A <nowiki><ref></nowiki> b <ref>c</ref> d.", "A b d."),
    ],
)
def test_references_that_are_not_whole(markup: str, prose: str) -> None:
    assert clean_markup(markup) == prose


def test_the_shortcut_changes_no_real_article(real_data: Path) -> None:
    for name in ("enwiki-latest-*", "enwiki-table-*", "bgwiki-*"):
        (path,) = (real_data / "mediawiki_dump").glob(name)
        source = DumpPages(path)
        for xml in source.rows(0):
            wikitext = read_page(xml, site=Dump(path).site).wikitext
            assert clean_markup(wikitext) == parsed_whole(wikitext)

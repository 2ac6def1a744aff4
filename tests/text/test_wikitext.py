"""Every construct of wiki markup."""

import pytest

from toolkit.text.wikitext import UnreadableMarkup, clean_markup


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

"""How long the parser of wiki markup (mwparserfromhell) would take for a page, before it is asked.

Knows what the parser tries, gives up and tries again. Refuses to know what markup means.

For whatever opens and is never closed, the parser reads on to the end of the page, gives up, and
goes back: 4,000 times "{{a|" take five seconds, 40,000 as many minutes. And "[[http:" it tries as
one kind of link and then as the other, each time with all that is nested within: 100 of them, one
kilobyte, take longer than anybody lives.
"""

import re
from collections import Counter

from mwparserfromhell.definitions import URI_SCHEMES

# Openers that are not closed, on their own and times the characters of the page: the parser then
# takes seconds at most. The worst pages of the real dumps have 14, and a tenth of this work.
MAX_UNCLOSED = 1000
MAX_WORK = 10**7
NEGLIGIBLE = 5  # in a page of any length: the work is then a small multiple of the length

_TWO_LINKS = re.compile(
    r"\[(?=\[(?:(?:" + "|".join(sorted(URI_SCHEMES)) + r"):|//))", re.IGNORECASE
)
_BRACKET = re.compile(
    # A heading is tried within whatever is open; |}} rather ends a template than a table.
    r"^=|\{{2,}|\}{2,}|\{\||\|\}(?!\})|\[\[|\]\]|\[|\]|<(?=[^\s<>=])|>",
    re.MULTILINE,
)
_CLOSED_BY = {"{|": "|}", "[[": "]]", "[": "]", "<": ">"}
_ELEMENT = re.compile(r"<(/?)([^\s<>/]++)([^<>]*+)>")
_QUOTED = re.compile(r"""=\s*+(?:"[^"]*+"|'[^']*+')""")
_OPEN_QUOTE = re.compile(r"""=\s*+["']""")
# What the parser takes as closed where the next one begins, or as always empty.
_SINGLE = frozenset({"br", "wbr", "hr", "meta", "link", "img", "li", "dt", "dd", "th", "td", "tr"})


def part_links(wikitext: str, *, by: str) -> str:
    """The text with `by` between the brackets of `[[http:`: the parser then reads the second of
    them as the beginning of an address at once, which is what it comes to in the end."""
    return _TWO_LINKS.sub("[" + by, wikitext)


def costs_too_much(wikitext: str) -> bool:
    """Whether the parser might spend more than a few seconds on it."""
    count = num_unclosed(wikitext)
    return count > MAX_UNCLOSED or (count > NEGLIGIBLE and count * len(wikitext) > MAX_WORK)


def num_unclosed(wikitext: str) -> int:
    """How many brackets and elements are not closed by their like before what surrounds them ends,
    and how many close nothing: a bound of what the parser may try in vain."""
    return _unclosed_brackets(wikitext) + _unclosed_elements(wikitext)


class _Open:
    """Brackets that are open, by what will close each, and how many came to nothing so far."""

    def __init__(self) -> None:
        self.count = 0
        self._wanted: list[str] = []
        self._waiting: Counter[str] = Counter()

    def open(self, wanted: str) -> None:
        if wanted == ">" and self._wanted[-1:] == [">"]:  # no tag begins within another one
            self.count += 1
            return
        self._wanted.append(wanted)
        self._waiting[wanted] += 1

    def close(self, bracket: str) -> None:
        """Close the last that waits for it, and give up all that were opened within."""
        if not self._waiting[bracket]:
            self.count += bracket != ">"  # of which any text may hold some
            return
        while (closed := self._wanted.pop()) != bracket:
            self._waiting[closed] -= 1
            self.count += 1
        self._waiting[bracket] -= 1

    def close_braces(self, num: int) -> None:
        """Close templates (two braces) and arguments (three), whichever are open."""
        while num >= 2:
            last = self._wanted[-1] if self._wanted else ""
            bracket = "}}}" if num >= 3 and (last == "}}}" or not self._waiting["}}"]) else "}}"
            self.close(bracket)
            num -= len(bracket)

    def give_up(self) -> None:
        """Nothing that is open will be closed."""
        self.count += len(self._wanted)
        self._wanted.clear()
        self._waiting.clear()


def _unclosed_brackets(wikitext: str) -> int:
    found = _Open()
    for match in _BRACKET.finditer(wikitext):
        bracket = match[0]
        if bracket == "=":
            found.give_up()
        elif bracket[:2] == "{{":
            for _ in range((len(bracket) - 3 * (len(bracket) % 2)) // 2):
                found.open("}}")
            if len(bracket) % 2:
                found.open("}}}")
        elif bracket[:2] == "}}":
            found.close_braces(len(bracket))
        elif bracket in _CLOSED_BY:
            found.open(_CLOSED_BY[bracket])
        else:
            found.close(bracket)
    found.give_up()
    return found.count


def _unclosed_elements(wikitext: str) -> int:
    open_: Counter[str] = Counter()
    quotes = 0
    for match in _ELEMENT.finditer(wikitext):
        end, name, rest = match[1], match[2].lower(), match[3]
        if end:
            open_[name] -= open_[name] > 0
        elif not rest.endswith("/") and name not in _SINGLE:
            open_[name] += 1
        quotes += bool(rest and _OPEN_QUOTE.search(_QUOTED.sub("", rest)))
    return open_.total() + quotes

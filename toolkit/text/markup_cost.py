"""Estimates whether the parser of wiki markup (mwparserfromhell) would take too long for a page.

Knows what the parser tries, gives up and tries again. Refuses to know what markup means.

For every bracket that is never closed, the parser reads on to the end of the page, gives up, and
goes back: 4,000 times "{{a|" take five seconds, 40,000 times take as many minutes. It tries
"[[http:" first as one kind of link and then as the other, each time with everything nested inside:
100 of them, which are one kilobyte, take longer than a human life.
"""

import re
from collections import Counter

from mwparserfromhell.definitions import URI_SCHEMES

# Limits for the number of unclosed openers, and for that number times the characters of the page.
# Below both, the parser takes seconds at most. The worst pages of the real dumps have 14 unclosed
# openers, and a tenth of this work.
MAX_UNCLOSED = 1000
MAX_WORK = 10**7
NEGLIGIBLE = 5  # this few are allowed in any page: the work is a small multiple of its length

_TWO_LINKS = re.compile(
    r"\[(?=\[(?:(?:" + "|".join(sorted(URI_SCHEMES)) + r"):|//))", re.IGNORECASE
)
_BRACKET = re.compile(
    # The parser tries a heading inside anything that is open. "|}}" ends a template, not a table.
    r"^=|\{{2,}|\}{2,}|\{\||\|\}(?!\})|\[\[|\]\]|\[|\]|<(?=[^\s<>=])|>",
    re.MULTILINE,
)
_CLOSED_BY = {"{|": "|}", "[[": "]]", "[": "]", "<": ">"}
_ELEMENT = re.compile(r"<(/?)([^\s<>/]++)([^<>]*+)>")
_QUOTED = re.compile(r"""=\s*+(?:"[^"]*+"|'[^']*+')""")
_OPEN_QUOTE = re.compile(r"""=\s*+["']""")
# Elements that the parser takes as closed where the next one begins, or as always empty.
_SINGLE = frozenset({"br", "wbr", "hr", "meta", "link", "img", "li", "dt", "dd", "th", "td", "tr"})


def part_links(wikitext: str, *, by: str) -> str:
    """The text with `by` between the two brackets of every `[[http:`. The parser then takes the
    second bracket for the start of an address at once, which is its final result anyway."""
    return _TWO_LINKS.sub("[" + by, wikitext)


def costs_too_much(wikitext: str) -> bool:
    """Whether the parser might spend more than a few seconds on this page."""
    count = num_unclosed(wikitext)
    return count > MAX_UNCLOSED or (count > NEGLIGIBLE and count * len(wikitext) > MAX_WORK)


def num_unclosed(wikitext: str) -> int:
    """An upper bound for the parser's failed attempts: the brackets and elements that are not
    closed before the bracket around them is, and the closing brackets that close nothing."""
    return _unclosed_brackets(wikitext) + _unclosed_elements(wikitext)


class _Open:
    """The brackets that are open, each as the bracket that would close it, and the `count` of
    brackets that were not matched so far."""

    def __init__(self) -> None:
        self.count = 0
        self._wanted: list[str] = []
        self._waiting: Counter[str] = Counter()

    def open(self, wanted: str) -> None:
        if wanted == ">" and self._wanted[-1:] == [">"]:  # no tag can begin inside another tag
            self.count += 1
            return
        self._wanted.append(wanted)
        self._waiting[wanted] += 1

    def close(self, bracket: str) -> None:
        """Close the last opener that waits for `bracket`, and give up all that were opened inside
        it."""
        if not self._waiting[bracket]:
            self.count += bracket != ">"  # ordinary text may contain ">"
            return
        while (closed := self._wanted.pop()) != bracket:
            self._waiting[closed] -= 1
            self.count += 1
        self._waiting[bracket] -= 1

    def close_braces(self, num: int) -> None:
        """Close templates (two braces) and arguments (three braces), whichever are open."""
        while num >= 2:
            last = self._wanted[-1] if self._wanted else ""
            bracket = "}}}" if num >= 3 and (last == "}}}" or not self._waiting["}}"]) else "}}"
            self.close(bracket)
            num -= len(bracket)

    def give_up(self) -> None:
        """Count everything that is open as never closed."""
        self.count += len(self._wanted)
        self._wanted.clear()
        self._waiting.clear()


def _unclosed_brackets(wikitext: str) -> int:
    brackets = _Open()
    for match in _BRACKET.finditer(wikitext):
        bracket = match[0]
        if bracket == "=":
            brackets.give_up()
        elif bracket[:2] == "{{":
            for _ in range((len(bracket) - 3 * (len(bracket) % 2)) // 2):
                brackets.open("}}")
            if len(bracket) % 2:
                brackets.open("}}}")
        elif bracket[:2] == "}}":
            brackets.close_braces(len(bracket))
        elif bracket in _CLOSED_BY:
            brackets.open(_CLOSED_BY[bracket])
        else:
            brackets.close(bracket)
    brackets.give_up()
    return brackets.count


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

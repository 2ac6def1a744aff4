"""What looks at texts of strangers takes time in proportion to their length, however they are made.

A guard: every regular expression of the toolkit and its scripts is found here in the source, and
driven with texts made of its own characters; and so is every function that is given texts. Times
of the processor are compared within a test, with bounds that quadratic work misses by far.
"""

import ast
import contextlib
import functools
import itertools
import random
import re
import re._constants as kinds  # type: ignore[import-untyped]
import re._parser as parser  # type: ignore[import-untyped]
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_scripts import prepare_trec
from toolkit.base.errors import BadInput
from toolkit.encoding.snippets import snippet_of
from toolkit.text import markup_cost, wikitext
from toolkit.text.dump import Dump
from toolkit.text.duplicates import key_of, normalized, signature
from toolkit.text.filters import has_no_spaces, language_of, low_quality
from toolkit.text.markup_cost import part_links
from toolkit.text.records import Damaged
from toolkit.text.sentences import sentence_spans
from toolkit.text.wikitext import UnreadableMarkup, clean_markup

ROOT = Path(__file__).parents[1]
METHODS = {"search", "match", "fullmatch", "split", "findall", "finditer", "sub", "subn"}
ANCHORED = {"match", "fullmatch"}
# Patterns that are put together when they are used, as their source says: what comes of them, or
# why nobody need look.
OF_OUR_OWN = "never sees a text of strangers: names of files and of weights"
PUT_TOGETHER: dict[str, list[str] | str] = {
    "f'<{tag}>'": ["<doc>"],
    "f'<{slash}{tag}>'": ["<doc>", "</doc>"],
    "'\\\\[(?=\\\\[(?:(?:' + '|'.join(sorted(URI_SCHEMES)) + '):|//))'": [
        markup_cost._TWO_LINKS.pattern
    ],
    "pattern": [pattern.pattern for pattern, _ in wikitext._MENDS],
    "f'(?:{prefix}\\\\.)?(?:layers|h|blocks)\\\\.(\\\\d+)\\\\.'": OF_OUR_OWN,
    "stem + '(-\\\\d+-of-\\\\d+)?\\\\.safetensors'": OF_OUR_OWN,
}


def patterns() -> Iterator[tuple[str, str | bytes, bool]]:
    """The file, the pattern, and whether it is only tried where a text begins."""
    files = sorted([*ROOT.glob("toolkit/**/*.py"), *ROOT.glob("data_scripts/*.py")])
    # What toolkit.cluster reads is what SLURM says, some lines at a time.
    files = [path for path in files if path.parent != ROOT / "toolkit" / "cluster"]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    used: dict[str, set[str]] = {}
    for _, node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            used.setdefault(ast.unparse(node.value).rpartition(".")[2], set()).add(node.attr)
    named = {
        id(value): target.id
        for _, node in nodes
        if isinstance(node, ast.Assign)
        for target, value in pairs(node)
        if isinstance(target, ast.Name)
    }
    for path, node in nodes:
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("re."):
            continue
        method, source = ast.unparse(node.func)[3:], node.args[0] if node.args else None
        if source is None or method not in METHODS | {"compile"}:
            continue
        methods = used.get(named.get(id(node), ""), set()) if method == "compile" else {method}
        is_anchored = bool(methods) and methods <= ANCHORED
        try:
            found: Any = [ast.literal_eval(source)]
        except ValueError:
            found = PUT_TOGETHER[ast.unparse(source)]
        for pattern in [] if isinstance(found, str) else found:
            yield str(path.relative_to(ROOT)), pattern, is_anchored


def pairs(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=True)
        else:
            yield target, node.value


def atoms(pattern: str) -> list[str]:
    """Pieces that the pattern asks for: its runs of characters, and one character of each class."""
    found: dict[str, None] = {}

    def walk(parsed: Any) -> None:
        run = ""
        for kind, value in parsed:
            if kind == kinds.LITERAL:
                run += chr(value)
                continue
            found[run], run = None, ""
            if kind == kinds.IN:
                for what, inner in value:
                    if what == kinds.LITERAL:
                        found[chr(inner)] = None
                    elif what == kinds.RANGE:
                        found[chr(inner[0])] = None
                    elif what == kinds.CATEGORY:
                        found[
                            " " if "SPACE" in str(inner) else "1" if "DIGIT" in str(inner) else "a"
                        ] = None
            elif kind == kinds.BRANCH:
                for branch in value[1]:
                    walk(branch)
            elif isinstance(value, tuple):
                for part in value:
                    if isinstance(part, parser.SubPattern):
                        walk(part)
        found[run] = None

    walk(parser.parse(pattern))
    return [atom for atom in [*found] if atom][:6] + ["x", " "]


def took_s(call: Callable[[Any], object], text: str | bytes) -> float:
    start = time.thread_time()
    call(text)
    return time.thread_time() - start


@functools.cache
def scan_s(size: int) -> float:
    """What a look at each of so many characters takes."""
    scan = re.compile(r"(?:\w|\s|.)")
    return max(1e-7 * size, *(took_s(scan.findall, "a <" * (size // 3)) for _ in range(3)))


def is_linear(pattern: str | bytes, *, is_anchored: bool) -> bool:
    """Whether 32,000 characters take less than twenty times as long as a scan of them all, where a
    pattern that looks from each to the end takes a hundred to some thousand times as long."""
    compiled = re.compile(pattern, re.DOTALL) if isinstance(pattern, str) else re.compile(pattern)
    call = compiled.match if is_anchored else lambda text: compiled.sub(text[:0], text)
    pieces = atoms(pattern if isinstance(pattern, str) else pattern.decode("latin-1"))
    units = ["".join(some) for size in (1, 2) for some in itertools.product(pieces, repeat=size)]
    for first, unit in itertools.product(["", *pieces[:2]], units):
        # The longer text is tried only where the shorter one raises a suspicion, and twice, since
        # a processor that is shared may be slow for a moment.
        for size, limit in ((1_500, 1), (32_000, 20), (32_000, 20)):
            pumped: Any = first + unit * (size // len(unit)) + "\0"
            if isinstance(pattern, bytes):
                pumped = pumped.encode("latin-1", "replace")
            if took_s(call, pumped) < limit * scan_s(size):
                break
        else:
            return False
    return True


EVERY = sorted(set(patterns()), key=str)


@pytest.mark.parametrize(("file", "pattern", "is_anchored"), EVERY)
def test_every_regular_expression_is_linear(
    file: str, pattern: str | bytes, is_anchored: bool
) -> None:
    assert is_linear(pattern, is_anchored=is_anchored), f"{file}: {pattern!r}"


def test_the_guard_knows_what_is_quadratic() -> None:
    for pattern in (r"<!--.*?-->", r"[\s,]+\)", rb"\s+$"):
        assert not is_linear(pattern, is_anchored=False), pattern
    assert is_linear(r"\s*x", is_anchored=True)
    assert len(EVERY) > 40


# --- functions that are given texts ---

UNITS = [
    *(
        "<!--",
        "<!-- -->",
        "<nowiki>",
        "<nowiki/><!--",
        "<ref>",
        "<ref ",
        "<ref a/> <",
        "<ref>a</ref",
    ),
    *(
        "{{",
        "{{a|",
        "{{{a|",
        "}}",
        "[[",
        "[[a|",
        "]]",
        "[http://a ",
        "[[http://a ",
        "[",
        "{|\n|-\n",
    ),
    *("<a ", "<a>", "<p>", "<td ", "<li a='b", '<br a="', '<i a="b" ', "<math>", "</", "&#", "&"),
    *("==", "\n== a ", "\n*", "\n;a:b", "''", "__A", "(", " ,", "{{convert|", "{{convert|1|to|"),
    *("«", "“a. ", "。」", '"', "...", "a. ", "U.S. ", "'", "\n", "\u2029", "a", "a "),
    *(
        "<doc>",
        "<title>",
        "<doc><docno>",
        "</doc>",
        "<text>a",
        "</page>",
        "<page>",
        "<page",
        "</text>",
    ),
]
SHORT = 150  # characters; a text 64 times as long may take 400 times as long, not 4,096 times


def dump_of(folder: Path) -> Callable[[str], object]:
    path = folder / "x.xml"

    def read(text: str) -> None:
        path.write_text(f"<mediawiki>{text}", encoding="utf-8")
        with contextlib.suppress(Damaged):
            list(Dump(path).pages(0))

    return read


def trec_of(folder: Path) -> Callable[[str], object]:
    path = folder / "x.trec"

    def read(text: str) -> None:
        path.write_text(f"<doc>{text}</doc>{text}", encoding="utf-8")
        with contextlib.suppress(BadInput):
            list(prepare_trec.records(path, tag="doc"))

    return read


def cleaned(text: str) -> None:
    with contextlib.suppress(UnreadableMarkup):
        clean_markup(text)


@pytest.mark.parametrize(
    "call",
    [cleaned, sentence_spans, key_of, normalized, signature, has_no_spaces, low_quality]
    + [language_of, snippet_of, part_links, markup_cost.num_unclosed, dump_of, trec_of],
)
def test_every_function_that_is_given_texts_is_linear(
    call: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the parser may try in vain is bounded; the bound is lowered here as the texts are.
    monkeypatch.setattr(markup_cost, "MAX_WORK", 10**4)
    chance = random.Random(0)
    mixed = ["".join(chance.choices(UNITS, k=chance.randint(2, 4))) for _ in range(30)]
    if call in (dump_of, trec_of):
        call = call(tmp_path)  # type: ignore[assignment]
    if call is part_links:
        call = functools.partial(part_links, by="")
    call("warm up")
    for unit in [*UNITS, *mixed]:
        short = max(took_s(call, unit * (SHORT // len(unit) + 1)), 3e-4)
        long = took_s(call, unit * (64 * SHORT // len(unit) + 1))
        assert long < 400 * short, f"{unit!r}: {short} s, and {long} s for 64 times as much"


@pytest.mark.parametrize("depth", [20, 40, 200, 3000])
def test_links_within_links_do_not_double_the_time_each(depth: int) -> None:
    """The parser's own time doubles with each of them: at 40 it is years."""
    for unit in ("[[http://a ", "[http://a [[HTTPS://b ", "[[//a {{", "[[mailto:a"):
        assert took_s(cleaned, unit * depth) < 20
        assert took_s(cleaned, unit * depth + "x" + "]]" * depth) < 20


def test_markup_that_is_parted_for_the_parser_reads_the_same() -> None:
    for link in ("[[http://a.b c]]", "x [[https://a.b]] y", "[[//a.b c d]]", "[[[http://a.b c]]]"):
        whole = clean_markup(f"Words {link} more.")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wikitext, "part_links", lambda text, by: text)
            assert clean_markup(f"Words {link} more.") == whole

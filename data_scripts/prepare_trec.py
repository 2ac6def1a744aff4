"""Turn a test collection in TREC's format into the files that evaluation reads.

    python data_scripts/prepare_trec.py --documents cran.all.1400.xml --queries cran.qry.xml \
        --judgements cranqrel.trec.txt --output trec/cranfield
    python data_scripts/shard_wikipedia.py --input trec/cranfield/documents.jsonl \
        --output trec/cranfield/shards

Writes documents.jsonl (id, title, text), queries.jsonl (_id, text) and judgements.tsv, as in BEIR.
In a recipe of `toolkit.evaluate` (paths under the collection's folder):

    retrieval:
      cranfield:
        corpus: shards
        queries: queries.jsonl
        judgements: judgements.tsv
"""

import argparse
import html
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from toolkit.base.console import say, warn
from toolkit.base.errors import BadInput
from toolkit.base.files import write_atomic
from toolkit.base.layout import JUDGEMENTS_FILE, LEASE_DIR, QUERIES_FILE
from toolkit.cluster.leases import Leases
from toolkit.command_line.door import Parser, guarded

# One lease for all three files: two processes at once could mix two collections.
LEASE, LEASE_S = "prepare", 60.0
TEXT_FIELDS = ("text", "body")
TITLE_FIELDS = ("title", "headline", "head")
OPENED, TAG = re.compile(r"<(\w+)(?:\s[^<>]*)?>"), re.compile(r"</?\w+(?:\s[^<>]*)?>")
CLOSED = re.compile(r"</(\w+)\s*>")
NUMBER = re.compile(r"(?:number\s*:)?\s*(\S+)", re.IGNORECASE)


def records(path: Path, *, tag: str) -> Iterator[dict[str, str]]:
    """The fields of each <tag> element of a file, by lower-case names; each run of white space
    becomes one space.

    Raises `BadInput` for a file without such an element. TREC's files are no XML: they have no root
    element, and contain characters that XML does not allow.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); write it in UTF-8") from error
    elements = list(_elements(content, tag=tag))
    if not elements:
        raise BadInput(f"{path}: no <{tag}> ... </{tag}> in it")
    num_opened = len(re.findall(rf"<{tag}>", content, re.IGNORECASE))
    if num_opened != len(elements):  # one that is not closed would take the next one into it
        raise BadInput(
            f"{path}: {num_opened} <{tag}> and {len(elements)} that are closed by </{tag}>: close "
            "every one; is the file whole?"
        )
    for number, inner in enumerate(elements, 1):
        fields: dict[str, str] = {}
        for name, value in _fields(inner):
            try:
                text = " ".join(html.unescape(TAG.sub(" ", value)).split())
            except ValueError as error:  # Python reads no number of more than 4,300 digits
                raise BadInput(
                    f"{path}: <{name}> of <{tag}> {number}: a character is written as &# and "
                    "thousands of digits; write the character"
                ) from error
            fields[name] = " ".join(filter(None, [fields.get(name, ""), text]))
        yield fields


def _elements(content: str, *, tag: str) -> Iterator[str]:
    """The content between each <tag> and the next </tag>."""
    begins, ends = (re.compile(f"<{slash}{tag}>", re.IGNORECASE) for slash in ("", "/"))
    place = 0
    while (opened := begins.search(content, place)) and (
        closed := ends.search(content, opened.end())
    ):
        yield content[opened.end() : closed.start()]
        place = closed.end()


def _fields(inner: str) -> Iterator[tuple[str, str]]:
    """The name and content of each top-level field; the content may have tags. In old topics fields
    are not closed: one ends where the next begins."""
    # All closing tags by name, the last one first. Searching for the next one each time would take
    # quadratic time.
    ends: dict[str, list[re.Match[str]]] = {}
    for match in reversed([*CLOSED.finditer(inner)]):
        ends.setdefault(match.group(1).lower(), []).append(match)
    place = 0
    while opened := OPENED.search(inner, place):
        name, start = opened.group(1).lower(), opened.end()
        waiting = ends.get(name, [])
        while waiting and waiting[-1].start() < start:
            waiting.pop()
        closed = waiting[-1] if waiting else None
        following = OPENED.search(inner, start)
        end = closed.start() if closed else following.start() if following else len(inner)
        yield name, inner[start:end]
        place = closed.end() if closed else end


def documents(path: Path) -> tuple[list[dict[str, str]], int]:
    """The documents that have a text, and the number of those without. Raises `BadInput` for a
    document without a <docno>."""
    kept, num_empty = [], 0
    for number, fields in enumerate(records(path, tag="doc"), 1):
        if not fields.get("docno"):
            raise BadInput(f"{path}: document {number} has no <docno>")
        text = _first(fields, TEXT_FIELDS)
        if text:
            title = _first(fields, TITLE_FIELDS)
            kept.append({"id": fields["docno"], "title": title, "text": text})
        else:
            num_empty += 1
    if not kept:
        raise BadInput(f"{path}: no document has a <{'> or <'.join(TEXT_FIELDS)}>")
    return kept, num_empty


def queries(path: Path, *, in_order: bool) -> dict[str, str]:
    """Queries by their number in the file or, with `in_order`, by their place from 1."""
    texts: dict[str, str] = {}
    for place, fields in enumerate(records(path, tag="top"), 1):
        number = NUMBER.match(fields.get("num", ""))
        if not number or not fields.get("title"):
            raise BadInput(f"{path}: topic {place} lacks <num> or <title>")
        name = str(place) if in_order else number.group(1)
        if name in texts:
            raise BadInput(f"{path}: two topics have the number {name}")
        texts[name] = fields["title"]
    return texts


def judgements(path: Path) -> list[tuple[str, str, int]]:
    """The query, document and grade of each line of a file of judgements."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, 1):
        try:
            query, _, document, grade = line.split()
            rows.append((query, document, int(grade)))
        except ValueError:
            raise BadInput(f"{path}, line {number}: is not like: query 0 document grade") from None
    return rows


def run(arguments: argparse.Namespace) -> None:
    """Write the three files, and warn if judgements and queries do not fit together."""
    kept, num_empty = documents(arguments.documents)
    asked = queries(arguments.queries, in_order=arguments.queries_in_order)
    judged = judgements(arguments.judgements)
    matched = [row for row in judged if row[0] in asked]
    say(f"{len(kept):,} documents ({num_empty:,} without text left out), {len(asked):,} queries")
    say(f"{len(matched):,} of {len(judged):,} judgements are of these queries")
    if len(matched) < len(judged):
        warn(
            "some judgements belong to no query. Perhaps they number queries by their order in the "
            "file; then even those that match belong to other queries: give --queries-in-order"
        )
    output: Path = arguments.output
    with Leases(output / LEASE_DIR, lease_s=LEASE_S) as leases:
        if not leases.take(LEASE, generation=leases.taken().get(LEASE)):
            raise BadInput(f"{output}: somebody else is writing there; choose another --output")
        _write_lines(output / "documents.jsonl", kept)
        rows = [{"_id": name, "text": text} for name, text in asked.items()]
        _write_lines(output / QUERIES_FILE, rows)
        lines = ["query-id\tcorpus-id\tscore"]
        lines += ["\t".join(map(str, row)) for row in judged]
        write_atomic(output / JUDGEMENTS_FILE, "\n".join(lines) + "\n")
    say(
        f"next: python data_scripts/shard_wikipedia.py --input {output / 'documents.jsonl'} "
        f"--output {output / 'shards'}"
    )


def _first(fields: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((fields[name] for name in names if fields.get(name)), "")


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_atomic(path, "\n".join(lines) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code: 0 done, 2 the input cannot be used."""
    parser = Parser(
        description="Turn a test collection in TREC's format into files for toolkit.evaluate.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--documents", type=Path, required=True, help="a file of <doc> with docno and text"
    )
    parser.add_argument(
        "--queries", type=Path, required=True, help="a file of <top> with num and title"
    )
    parser.add_argument(
        "--judgements", type=Path, required=True, help="a file of lines: query 0 document grade"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--queries-in-order",
        action="store_true",
        help="number queries by their order in the file, as Cranfield's judgements do",
    )
    arguments = parser.parse_args(argv)
    return guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())

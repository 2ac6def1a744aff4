"""Reads training pairs in the formats that people have: E5 and Echo, sentence-transformers,
Tevatron, FlagEmbedding, and natural language inference.

Knows names of columns. Refuses to know what a pair is used for.
"""

import csv
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.base.errors import BadInput
from toolkit.base.files import RepeatedName, without_repeats
from toolkit.text.delimited import TABLES, UTF_8, check_header, dialect_of
from toolkit.text.pairs import Pair
from toolkit.text.readers import Lines, ParquetRows, text_problem
from toolkit.text.records import Damaged, read_errors

QUERIES = ("query", "anchor", "question")
POSITIVES = ("positive", "pos", "positives", "positive_passages", "answer", "document", "passage")
NEGATIVES = ("negatives", "negative", "neg", "negative_passages", "hard_negatives")
PREMISES, HYPOTHESES = ("premise", "sentence1"), ("hypothesis", "sentence2")
LABELS = ("label", "gold_label")
ENTAILMENT, NEUTRAL, CONTRADICTION = "entailment", "neutral", "contradiction"
# Sentence pairs of SNLI on whose label people did not agree (Bowman et al. 2015, section 2.2).
NO_GOLD = "no gold label"
# Labels by name, and by the number that they have in the data sets of Hugging Face's hub.
NLI_LABELS: Mapping[Any, str] = {
    **dict.fromkeys((ENTAILMENT, "0", 0), ENTAILMENT),
    **dict.fromkeys((NEUTRAL, "1", 1), NEUTRAL),
    **dict.fromkeys((CONTRADICTION, "2", 2), CONTRADICTION),
    **dict.fromkeys(("-", "-1", -1), NO_GOLD),
}
BLANK_LINE, REPEATED, NO_CONTRADICTION, NO_ENTAILMENT, TOO_MANY, CONTRARY = (
    "blank line",
    "repeats an earlier row",
    "entailed by a premise that contradicts nothing",
    "contradicted by a premise that entails nothing",
    "contradicted, beyond --max-negatives",
    "contradicted and entailed",
)
MAX_SHOWN = 40

Row = Mapping[str, Any]
OnBad = Callable[[str, str, str], None]


def read_pairs(
    path: Path,
    *,
    max_negatives: int,
    on_bad: OnBad,
    left_out: Counter[str],
    on_row: Callable[[], object] = lambda: None,
) -> Iterator[Pair]:
    """The pairs of a file (.jsonl, .parquet, .csv, .tsv), or of a folder with line-aligned files
    s1.PART, s2.PART and labels.PART.

    `on_bad(place, reason, note)` is called for each row that is faulty. `left_out` counts, by
    reason, the rows that are valid but give no pair and no negative. `on_row()` is called for each
    row that is read, with any result, but not for a blank line. Raises `BadInput` for a file that
    cannot be read, and for columns of no known format.
    """

    def on_unread(place: str, reason: str, note: str) -> None:
        on_row()
        on_bad(place, reason, note)

    rows = _checked(_rows(path, on_bad=on_unread, left_out=left_out), path=path, on_row=on_row)
    # The columns of the first row decide the format of the whole file.
    first = next(rows, None)
    if first is None:
        raise BadInput(f"{path}: holds no row")
    chained = itertools.chain([first], rows)
    if _first_of(first[1], PREMISES) and _first_of(first[1], LABELS):
        yield from nli_pairs(chained, max_negatives=max_negatives, on_bad=on_bad, left_out=left_out)
        return
    if not _first_of(first[1], QUERIES) or not _first_of(first[1], POSITIVES):
        raise BadInput(
            f"{path}: its columns are {', '.join(sorted(first[1]))}; wanted: one of "
            f"{', '.join(QUERIES)}, and one of {', '.join(POSITIVES)} (or premise, hypothesis, "
            "label)"
        )
    for place, row in chained:
        yield from _pairs_of(row, place=place, max_negatives=max_negatives, on_bad=on_bad)


def nli_pairs(
    rows: Iterator[tuple[str, Row]], *, max_negatives: int, on_bad: OnBad, left_out: Counter[str]
) -> Iterator[Pair]:
    """One pair for each entailed hypothesis of a premise, with the contradicted ones as negatives.

    A premise without a contradicted hypothesis gives no pair (Gao et al. 2021, section 4). A row
    whose label is not in `NLI_LABELS` is faulty.
    """
    # By premise and label; the inner keys are the hypotheses. Dictionaries instead of sets keep the
    # order of the rows, so that equal input gives equal output.
    premises: dict[str, dict[str, dict[str, None]]] = {}
    for place, row in rows:
        premise = row.get(_first_of(row, PREMISES) or "")
        hypothesis = row.get(_first_of(row, HYPOTHESES) or "")
        given = row.get(_first_of(row, LABELS) or "")
        label = _nli_label(given)
        if problem := text_problem(premise) or text_problem(hypothesis):
            on_bad(place, problem, str(row)[:80])
        elif label is None:
            on_bad(place, f"unknown label {str(given)[:MAX_SHOWN]!r}", str(row)[:80])
        elif label in (NEUTRAL, NO_GOLD):
            left_out[label] += 1
        else:
            of_premise = premises.setdefault(
                str(premise).strip(), {ENTAILMENT: {}, CONTRADICTION: {}}
            )
            left_out[REPEATED] += str(hypothesis).strip() in of_premise[label]
            of_premise[label][str(hypothesis).strip()] = None
    for premise, hypotheses in premises.items():
        entailed, contradicted = hypotheses[ENTAILMENT], hypotheses[CONTRADICTION]
        negatives = [text for text in contradicted if text not in entailed]
        left_out[CONTRARY] += len(contradicted) - len(negatives)
        if not negatives:
            left_out[NO_CONTRADICTION] += len(entailed)
        elif not entailed:
            left_out[NO_ENTAILMENT] += len(negatives)
        else:
            left_out[TOO_MANY] += max(0, len(negatives) - max_negatives)
            for hypothesis in entailed:
                yield Pair(premise, hypothesis, tuple(negatives[:max_negatives]))


def _nli_label(given: Any) -> str | None:
    """The meaning of a label of any type; None if it is unknown."""
    # True equals 1 as a key, and would be taken for "neutral".
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        return None
    return NLI_LABELS.get(given)


def _pairs_of(row: Row, *, place: str, max_negatives: int, on_bad: OnBad) -> Iterator[Pair]:
    query = row.get(_first_of(row, QUERIES) or "")
    positives = _texts(row.get(_first_of(row, POSITIVES) or ""))
    named = _first_of(row, NEGATIVES)
    numbered = sorted(key for key in row if key.startswith("negative_") and key[9:].isdigit())
    values = [row[named]] if named else [row[key] for key in numbered]
    negatives = [text for value in values for text in _texts(value)]
    problem = text_problem(query)
    if not problem and not positives:
        problem = "no positive"
    for text in (*positives, *negatives):
        problem = problem or text_problem(text)
    if problem:
        on_bad(place, problem, str(row)[:80])
        return
    for positive in positives:
        different = [text for text in dict.fromkeys(negatives) if text not in (query, positive)]
        yield Pair(str(query), positive, tuple(different[:max_negatives]))


def _texts(value: Any) -> list[Any]:
    """The texts in a value: a text, a list of texts, or a list of passages with title and text."""
    values = value if isinstance(value, list) else [value] if value is not None else []
    return [
        f"{entry.get('title') or ''} {entry.get('text')}".strip()
        if isinstance(entry, dict) and entry.get("text")
        else entry
        for entry in values
    ]


def _first_of(row: Row, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _checked(
    rows: Iterator[tuple[str, Row]], *, path: Path, on_row: Callable[[], object]
) -> Iterator[tuple[str, Row]]:
    try:
        for row in rows:
            on_row()
            yield row
    except Damaged as error:
        raise BadInput(f"{path}: {error}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from error


def _rows(path: Path, *, on_bad: OnBad, left_out: Counter[str]) -> Iterator[tuple[str, Row]]:
    """The rows of a file or folder, each with its place, such as "line 7"."""
    if path.is_dir():
        yield from _aligned(path)
    elif not path.is_file():
        raise BadInput(f"{path}: no such file")
    elif path.suffix == ".parquet":
        table = ParquetRows(path)
        number = 0
        with read_errors():
            for batch in table.batches(0, columns=table.columns):
                for row in batch:
                    number += 1
                    yield f"row {number}", row
    elif path.suffix in TABLES:
        yield from _table_rows(path, on_bad=on_bad, left_out=left_out)
    else:
        yield from _json_rows(path, on_bad=on_bad, left_out=left_out)


def _table_rows(path: Path, *, on_bad: OnBad, left_out: Counter[str]) -> Iterator[tuple[str, Row]]:
    with path.open(encoding=UTF_8, newline="") as handle:
        reader = csv.reader(handle, dialect=dialect_of(path))
        header: list[str] = []
        try:
            for fields in reader:
                place = f"line {reader.line_num}"
                if not any(map(str.strip, fields)) and len(fields) < 2:
                    left_out[BLANK_LINE] += 1
                elif not header:
                    header = fields
                    check_header(header, path=path)
                elif len(fields) > len(header):  # probably a comma or tab inside an unquoted text
                    on_bad(place, "more fields than the header has", str(fields)[:80])
                elif len(fields) < len(header):
                    on_bad(place, "fewer fields than the header has", str(fields)[:80])
                else:
                    yield place, dict(zip(header, fields, strict=True))
        except csv.Error as error:
            raise BadInput(
                f"{path}, line {reader.line_num}: its quotes cannot be read ({error}); write "
                '"" for a quote in a text, or JSON lines'
            ) from error


def _json_rows(path: Path, *, on_bad: OnBad, left_out: Counter[str]) -> Iterator[tuple[str, Row]]:
    lines = Lines(path, name=path.name, columns=None)
    for number, line in enumerate(lines.rows(0), 1):
        if not line.strip():
            left_out[BLANK_LINE] += 1
            continue
        problem = "not a JSON object"
        try:
            row = json.loads(line, object_pairs_hook=without_repeats)
        except RepeatedName as error:
            row, problem = None, str(error)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield f"line {number}", row
        else:
            shown = line[:80].decode(errors="replace").strip()
            on_bad(f"line {number}", problem, shown)


def _aligned(folder: Path) -> Iterator[tuple[str, Row]]:
    """Rows of files such as s1.dev, s2.dev and labels.dev (InferSent, e-SNLI), in which lines with
    the same number belong together."""
    parts = sorted(path.name.removeprefix("s1.") for path in folder.glob("s1.*"))
    if not parts:
        raise BadInput(f"{folder}: holds no s1.PART beside s2.PART and labels.PART")
    for part in parts:
        columns = [
            io.StringIO((folder / f"{name}.{part}").read_text(encoding="utf-8")).readlines()
            for name in ("s1", "s2", "labels")
        ]
        if len({len(column) for column in columns}) > 1:
            sizes = ", ".join(str(len(column)) for column in columns)
            raise BadInput(f"{folder}: s1, s2 and labels of {part!r} have {sizes} lines")
        for number, values in enumerate(zip(*columns, strict=True), 1):
            names = ("premise", "hypothesis", "label")
            row = {name: value.strip() for name, value in zip(names, values, strict=True)}
            yield f"{part}, line {number}", row

"""Training pairs in the layouts that people have: E5 and Echo, sentence-transformers, Tevatron,
FlagEmbedding, and natural language inference.

Knows names of columns. Refuses to know what becomes of a pair.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.files import BadInput
from toolkit.text.pairs import Pair
from toolkit.text.readers import Lines, ParquetRows, text_problem
from toolkit.text.records import Damaged

QUERIES = ("query", "anchor", "question")
POSITIVES = ("positive", "pos", "positives", "positive_passages", "answer", "document", "passage")
NEGATIVES = ("negatives", "negative", "neg", "negative_passages", "hard_negatives")
PREMISES, HYPOTHESES = ("premise", "sentence1"), ("hypothesis", "sentence2")
LABELS = ("label", "gold_label")
# By their names, and by their numbers in the data sets of Hugging Face's hub.
ENTAILED, CONTRADICTED = {"entailment", "0", 0}, {"contradiction", "2", 2}
TABLES = (".csv", ".tsv")

Row = Mapping[str, Any]
OnBad = Callable[[str, str, str], None]


def read_pairs(path: Path, *, max_negatives: int, on_bad: OnBad) -> Iterator[Pair]:
    """The pairs of a file (.jsonl, .parquet, .csv, .tsv), or of a folder with line-aligned files
    s1.PART, s2.PART and labels.PART.

    `on_bad(place, reason, note)` is called for each row that gives none. Raises `BadInput` for a
    file that cannot be read, and for columns that are in no known layout.
    """
    rows = _checked(_rows(path, on_bad=on_bad), path=path)
    first = next(rows, None)
    if first is None:
        raise BadInput(f"{path}: holds no row")
    chained = _chain(first, rows)
    if _first_of(first[1], PREMISES) and _first_of(first[1], LABELS):
        yield from nli_pairs(chained, max_negatives=max_negatives, on_bad=on_bad)
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
    rows: Iterator[tuple[str, Row]], *, max_negatives: int, on_bad: OnBad
) -> Iterator[Pair]:
    """A pair for each entailed hypothesis of a premise, with the contradicted ones as negatives.

    A premise without a contradicted hypothesis gives none (Gao et al. 2021, section 4).
    """
    entailed: dict[str, list[str]] = {}
    contradicted: dict[str, list[str]] = {}
    for place, row in rows:
        premise = row.get(_first_of(row, PREMISES) or "")
        hypothesis = row.get(_first_of(row, HYPOTHESES) or "")
        label = row.get(_first_of(row, LABELS) or "")
        if problem := text_problem(premise) or text_problem(hypothesis):
            on_bad(place, problem, str(row)[:80])
        elif label in ENTAILED:
            entailed.setdefault(str(premise).strip(), []).append(str(hypothesis).strip())
        elif label in CONTRADICTED:
            contradicted.setdefault(str(premise).strip(), []).append(str(hypothesis).strip())
    for premise, hypotheses in entailed.items():
        negatives = tuple(dict.fromkeys(contradicted.get(premise, ())))
        for hypothesis in dict.fromkeys(hypotheses):
            if negatives:
                yield Pair(premise, hypothesis, negatives[:max_negatives])


def _pairs_of(row: Row, *, place: str, max_negatives: int, on_bad: OnBad) -> Iterator[Pair]:
    query = row.get(_first_of(row, QUERIES) or "")
    positives = _texts(row.get(_first_of(row, POSITIVES) or ""))
    named = _first_of(row, NEGATIVES)
    numbered = sorted(key for key in row if key.startswith("negative_") and key[9:].isdigit())
    found = [row[named]] if named else [row[key] for key in numbered]
    negatives = [text for value in found for text in _texts(value)]
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
    """A text, a list of texts, or a list of passages with title and text, as a list of texts."""
    values = value if isinstance(value, list) else [value] if value is not None else []
    return [
        f"{entry.get('title') or ''} {entry.get('text')}".strip()
        if isinstance(entry, dict) and entry.get("text")
        else entry
        for entry in values
    ]


def _first_of(row: Row, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _chain(first: tuple[str, Row], rest: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    yield first
    yield from rest


def _checked(rows: Iterator[tuple[str, Row]], *, path: Path) -> Iterator[tuple[str, Row]]:
    try:
        yield from rows
    except Damaged as error:
        raise BadInput(f"{path}: {error}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from error


def _rows(path: Path, *, on_bad: OnBad) -> Iterator[tuple[str, Row]]:
    """Each row with its place, such as "line 7"."""
    if path.is_dir():
        yield from _aligned(path)
    elif not path.is_file():
        raise BadInput(f"{path}: no such file")
    elif path.suffix == ".parquet":
        table = ParquetRows(path)
        number = 0
        for batch in table.batches(0, columns=table.columns):
            for row in batch:
                number += 1
                yield f"row {number}", row
    elif path.suffix in TABLES:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            # Strict: a quote that is not closed would take the rows behind it into its own.
            delimiter = "\t" if path.suffix == ".tsv" else ","
            reader = csv.DictReader(handle, delimiter=delimiter, strict=True)
            names = reader.fieldnames or []
            try:
                for row in reader:
                    where = f"line {reader.line_num}"
                    if None in row or None in row.values():
                        on_bad(where, f"has not {len(names)} columns", str([*row.values()])[:80])
                    else:
                        yield where, row
            except csv.Error as error:
                raise BadInput(
                    f"{path}, line {reader.line_num}: its quotes cannot be read ({error}); write "
                    '"" for a quote in a text, or JSON lines'
                ) from error
    else:
        yield from _json_rows(path, on_bad=on_bad)


def _json_rows(path: Path, *, on_bad: OnBad) -> Iterator[tuple[str, Row]]:
    lines = Lines(path, name=path.name, columns=None)
    for number, line in enumerate(lines.rows(0), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield f"line {number}", row
        else:
            shown = line[:80].decode(errors="replace").strip()
            on_bad(f"line {number}", "not a JSON object", shown)


def _aligned(folder: Path) -> Iterator[tuple[str, Row]]:
    """s1.dev, s2.dev, labels.dev, as of InferSent and e-SNLI: line n of each belongs together."""
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

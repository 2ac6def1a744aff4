"""The data of word-level tasks: words with tags from column files (CoNLL), CoNLL-U and data sets of
Hugging Face's `datasets`.

Knows files. Refuses to know tokens and vectors.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from toolkit.base.errors import BadInput
from toolkit.settings.task_schema import Column, WordTask
from toolkit.text.packed import open_packed
from toolkit.text.readers import DatasetRows
from toolkit.text.records import Damaged
from toolkit.text.sources import COMPRESSED, is_saved_dataset

CONLL_SUFFIXES, CONLLU_SUFFIXES = (".conll", ".txt"), (".conllu",)
# CoNLL-2003's columns, by which columns are named in files without a header.
CONLL_COLUMNS = ("word", "pos", "chunk", "ner")
# universaldependencies.org/format.html
CONLLU_COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
DOCUMENT_START = "-DOCSTART-"
MAX_SHOWN = 80
SPAN_TAG = re.compile(r"O|[BIESLU](-.+)?")
CONLLEVAL = "conlleval"
# Which letters may stand before the type of a span, by the name of the scheme.
SCHEME_LETTERS = {"iob1": "BIO", "iob2": "BIO", "iobes": "BIOES", "bilou": "BILOU"}


@dataclasses.dataclass(frozen=True)
class Tagged:
    """Sentences of words, with one tag per word; `name` is the file or data set they come from."""

    name: str
    sentences: Sequence[Sequence[str]]
    tags: Sequence[Sequence[str]]

    @property
    def all_tags(self) -> list[str]:
        """The tags of all words, sentence after sentence."""
        return [tag for tags in self.tags for tag in tags]


@dataclasses.dataclass(frozen=True)
class WordData:
    """The training and the test part of a task. `scheme` is how spans are read: `conlleval`,
    strictly by one of `SCHEME_LETTERS`, or `none` where there are no spans."""

    train: Tagged
    test: Tagged
    scheme: str

    @property
    def digest(self) -> str:
        """The SHA-256 of all words and tags."""
        rows = [[part.sentences, part.tags] for part in (self.train, self.test)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def read_word_data(task: WordTask) -> WordData:
    """Read both parts of a task.

    Raises `BadInput` with the file and line that cannot be read, for a part that is empty or has a
    single tag, and for spans marked otherwise than `scheme` says or than in the other part.
    """
    parts = {role: _read(task, role=role) for role in ("train", "test")}
    schemes = {role: scheme_of(part.tags) for role, part in parts.items()}
    for role, part in parts.items():
        if task.scheme in SCHEME_LETTERS and not _is_valid(part.tags, scheme=task.scheme):
            raise BadInput(
                f"{part.name}: its tags do not keep the rules of scheme={task.scheme} "
                f"(found: {schemes[role]}); scheme=auto reads them as conlleval does"
            )
    if task.scheme != "auto":
        return WordData(parts["train"], parts["test"], task.scheme)
    kinds = set(schemes.values())
    if len(kinds) > 1 and ("mixed" not in kinds or "none" in kinds):
        raise BadInput(
            f"spans are marked by {schemes['train']} in {parts['train'].name}, and by "
            f"{schemes['test']} in {parts['test'].name}: write both in one scheme, or give "
            "scheme=none for the accuracy alone"
        )
    # conlleval knows B, I, E and S, and is not strict; it would misread the L and U of BILOU.
    strange = [tag for part in parts.values() for tag in part.all_tags if tag[0] in "LU"]
    if kinds not in ({"none"}, {"bilou"}) and strange:
        raise BadInput(f"the tag {strange[0]!r} is of BILOU, whose rules the tags do not keep")
    scheme = kinds.pop() if kinds in ({"none"}, {"bilou"}) else CONLLEVAL
    return WordData(parts["train"], parts["test"], scheme)


def scheme_of(tags: Sequence[Sequence[str]]) -> str:
    """How spans are marked: the first scheme of `SCHEME_LETTERS` whose rules all tags keep, `mixed`
    if they look like spans but keep the rules of none, `none` if some tag looks like no span."""
    if not all(SPAN_TAG.fullmatch(tag) for row in tags for tag in row):
        return "none"
    # IOB2 before IOB1: tags that keep the rules of both have no spans.
    order = ("iob2", "iob1", "iobes", "bilou")
    return next((name for name in order if _is_valid(tags, scheme=name)), "mixed")


def _is_valid(tags: Sequence[Sequence[str]], *, scheme: str) -> bool:
    return all(_follows(before, tag, scheme=scheme) for row in tags for before, tag in _turns(row))


def _turns(row: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each tag with the one before it, with an O before the first and after the last."""
    return zip(["O", *row], [*row, "O"], strict=True)


def _follows(before: str, tag: str, *, scheme: str) -> bool:
    """Whether `tag` may stand after `before`."""
    if not SPAN_TAG.fullmatch(tag) or tag[0] not in SCHEME_LETTERS[scheme]:
        return False
    same = before[0] != "O" and before[1:] == tag[1:]
    if scheme == "iob1":  # B only separates a span from one of the same type before it
        return tag[0] != "B" or same
    if scheme == "iob2":
        return tag[0] != "I" or same
    is_open, goes_on = before[0] in "BI", tag[0] in {"iobes": "IE", "bilou": "IL"}[scheme]
    return same if is_open and goes_on else is_open == goes_on


def _read(task: WordTask, *, role: str) -> Tagged:
    given: str = getattr(task, role)
    path = Path(given)
    kind = task.format if task.format != "auto" else _kind_of(path)
    if kind == "dataset":
        part = _read_dataset(given, split=role, task=task)
    elif not path.is_file():
        raise BadInput(f"{path}: no such file")
    elif kind == "conllu":
        part = _read_conllu(path, task=task)
    else:
        part = _read_conll(path, task=task)
    if not part.sentences:
        raise BadInput(f"{part.name}: no sentences of words")
    if len(set(part.all_tags)) < 2:
        only = f"all {len(part.all_tags)} words have the tag {part.tags[0][0][:MAX_SHOWN]!r}"
        raise BadInput(f"{part.name}: {only}: nothing to tell apart; is `column` right?")
    return part


def _kind_of(path: Path) -> str:
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    if name.endswith(CONLLU_SUFFIXES):
        return "conllu"
    if name.endswith(CONLL_SUFFIXES):
        return "conll"
    if path.is_dir() and is_saved_dataset(path):
        return "dataset"
    packed = ", ".join(COMPRESSED)
    raise BadInput(
        f"{path}: unknown kind of file; give .conll, .txt or .conllu (also with {packed}), or a "
        "folder of `save_to_disk`, or say which it is by format=conll, conllu or dataset"
    )


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line with its file and number. `BadInput` for a broken file, or one not in UTF-8."""
    number = 0
    try:
        with open_packed(path) as handle:  # lines end at \n alone: a word may hold U+2028
            for number, raw in enumerate(handle, 1):
                line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                yield line.decode().rstrip("\r\n"), f"{path}, line {number}"
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path}, line {number}: is not UTF-8 ({error.reason}); convert the file first, as in "
            "iconv -f LATIN1 -t UTF-8"
        ) from error
    except (OSError, Damaged) as error:
        raise BadInput(f"{path}: cannot be read after line {number} ({error})") from error


def _sentences(rows: Iterator[tuple[str, str] | None]) -> tuple[list[list[str]], list[list[str]]]:
    """Words and tags by sentence; a row of None ends a sentence."""
    words: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    for row in rows:
        if row is not None:
            words[-1].append(row[0])
            tags[-1].append(row[1])
        elif words[-1]:
            words.append([])
            tags.append([])
    return [row for row in words if row], [row for row in tags if row]


def _read_conll(path: Path, *, task: WordTask) -> Tagged:
    """Read columns separated by tabs or blanks, and sentences by empty lines. # is a word here."""

    def rows() -> Iterator[tuple[str, str] | None]:
        width = 0
        for line, where in _lines(path):
            if not line.strip(" \t"):
                yield None
                continue
            fields = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
            if fields[0] == DOCUMENT_START:
                yield None
                continue
            if not width:
                width = len(fields)
                names = CONLL_COLUMNS[:width]
                word = _column(task.word_column or 1, names=names, width=width, where=where)
                tag = _column(task.column, names=names, width=width, where=where)
            if len(fields) != width:
                raise BadInput(
                    f"{where}: {len(fields)} columns instead of {width}: {line[:MAX_SHOWN]!r}"
                )
            if not fields[tag]:
                raise BadInput(f"{where}: column {tag + 1} has no tag: {line[:MAX_SHOWN]!r}")
            yield fields[word], fields[tag]

    return Tagged(str(path), *_sentences(rows()))


def _read_conllu(path: Path, *, task: WordTask) -> Tagged:
    """Read the syntactic words of CoNLL-U, which carry the tags: for a range such as 1-2 (don't)
    its words (do, n't), and no empty nodes (8.1), which are no words of the text."""

    def rows() -> Iterator[tuple[str, str] | None]:
        start = f"{path}, line 1"
        names, width = CONLLU_COLUMNS, len(CONLLU_COLUMNS)
        word = _column(task.word_column or "form", names=names, width=width, where=start)
        tag = _column(task.column or "upos", names=names, width=width, where=start)
        expected = 1
        for line, where in _lines(path):
            if not line.strip() or line.startswith("#"):
                if not line.strip():
                    expected = 1
                    yield None
                continue
            fields = line.split("\t")
            if len(fields) != width:
                raise BadInput(
                    f"{where}: {len(fields)} columns parted by tabs instead of the {width} of "
                    f"CoNLL-U: {line[:MAX_SHOWN]!r}"
                )
            if re.fullmatch(r"[0-9]+[-.][0-9]+", fields[0]):
                continue
            if fields[0] != str(expected):
                raise BadInput(
                    f"{where}: word {fields[0][:MAX_SHOWN]!r} where {expected} should be (an empty "
                    "line parts sentences)"
                )
            expected += 1
            if names[tag] in ("upos", "xpos") and fields[tag] in ("", "_"):
                raise BadInput(
                    f"{where}: the word {fields[word][:MAX_SHOWN]!r} has no {names[tag]}"
                )
            yield fields[word], fields[tag]

    return Tagged(str(path), *_sentences(rows()))


def _read_dataset(given: str, *, split: str, task: WordTask) -> Tagged:
    """Read a column of lists of words and a column of lists of tags: texts or `ClassLabel`s."""
    table = DatasetRows(given, config=None, split=split)
    names = tuple(table.columns)
    word = names[_column(task.word_column or "tokens", names=names, width=len(names), where=given)]
    tag = names[_column(task.column, names=names, width=len(names), where=given)]
    classes = getattr(getattr(table.features[tag], "feature", None), "names", None)
    sentences: list[list[str]] = []
    tags: list[list[str]] = []
    for batch in table.batches(0, columns=[word, tag]):
        for row in batch:
            where = f"{given}, row {len(sentences)} of {split!r}"
            for column in (word, tag):
                if not isinstance(row[column], list):
                    raise BadInput(f"{where}: {column} is {row[column]!r:.80}: give a list")
            if strange := [value for value in row[word] if not isinstance(value, str)]:
                raise BadInput(f"{where}: {strange[0]!r:.80} is not a word: give texts")
            sentences.append(row[word])
            tags.append([_name(value, classes=classes, where=where) for value in row[tag]])
            if len(sentences[-1]) != len(tags[-1]):
                raise BadInput(
                    f"{where}: {len(sentences[-1])} words ({word}), {len(tags[-1])} tags ({tag})"
                )
    filled = [number for number, words in enumerate(sentences) if words]
    return Tagged(given, [sentences[n] for n in filled], [tags[n] for n in filled])


def _name(value: Any, *, classes: Sequence[str] | None, where: str) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and classes is None:
        return str(value)
    if isinstance(value, int) and classes and 0 <= value < len(classes):
        return classes[value]
    valid = f"0 to {len(classes) - 1}" if classes else "texts, or numbers"
    raise BadInput(f"{where}: {value!r} is not a tag; valid: {valid}")


def _column(given: Column | None, *, names: Sequence[str], width: int, where: str) -> int:
    """The place, from 0, of a column that is given by its name or its number (from 1)."""
    if isinstance(given, int) and given <= width:
        return given - 1
    if isinstance(given, str) and given in names:
        return list(names).index(given)
    what = "no column is named for the tags" if given is None else f"no column {given!r}"
    raise BadInput(
        f"{where}: {what}; give column= as one of {', '.join(names)} or a number from 1 to {width}"
    )

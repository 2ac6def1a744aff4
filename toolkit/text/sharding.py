"""Documents of any files to a directory of shards, in parts that any number of workers make.

Knows parts: the documents of `rows_per_shard` rows of one input, a pure function of that input and
the settings. Refuses to know who makes which part (`toolkit.cluster.crew`), and when.

While they are made, parts lie beside the output:
    .OUT.parts-<digest>/f00000-u00000.json              what the part holds; written last
    .OUT.parts-<digest>/f00000-u00000-0.parquet         its shards, its keys, its quarantine
When all are there, `finish` looks for duplicates over all of them and commits OUT, whole.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.files import read_json, write_atomic, write_json
from toolkit.text.duplicates import SIGNATURE_FORM, key_of, signature, text_key
from toolkit.text.filters import Filters, has_no_spaces
from toolkit.text.readers import Columns, Source
from toolkit.text.records import Article, Damaged, Rejected
from toolkit.text.shards import ShardRules, write_shard
from toolkit.text.sources import Input, num_rows, open_source, reading_settings

DEDUPLICATE = ("none", "exact", "near")
SHOWN_CHARS = 80
LIKELY_ROW_BYTES = 100  # few inputs have rows that are smaller, packed


@dataclass(frozen=True)
class Work:
    """Everything that decides what the output holds, and where it goes."""

    output: Path
    inputs: tuple[Input, ...]
    columns: Columns = field(default_factory=Columns)
    rules: ShardRules = field(default_factory=ShardRules)
    filters: Filters = field(default_factory=Filters)
    deduplicate: str = "none"
    limit: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the output, besides the bytes of the inputs."""
        kinds = sorted({given.kind for given in self.inputs})
        return {
            **dataclasses.asdict(self.rules),
            "reading": [reading_settings(kind, columns=self.columns) for kind in kinds],
            "filters": dataclasses.asdict(self.filters) | {"languages": [*self.filters.languages]},
            "deduplicate": self.deduplicate,
            "limit": self.limit,
        }

    @functools.cached_property
    def parts(self) -> Path:
        """Where parts lie; another input or setting has another place. Looked up once: workers are
        told it, and an input that changes meanwhile does not part them."""
        seen = [(given.name, given.path, *_stamp(given)) for given in self.inputs]
        # Parts with signatures of another form are no use beside these.
        form = [SIGNATURE_FORM] if self.deduplicate == "near" else []
        identity = json.dumps([seen, self.settings, *form], sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
        return self.output.with_name(f".{self.output.name}.parts-{digest}")

    def stem(self, *, file: int, unit: int) -> str:
        """How the files of a part begin."""
        return f"f{file:05d}-u{unit:05d}"


@dataclass(frozen=True)
class Part:
    """What a part holds. `ended` says that its input has no rows after it."""

    file: int
    unit: int
    rows: int
    ended: bool
    bytes_in: int
    dropped: Mapping[str, int]
    quarantined: Mapping[str, int]
    damage: str
    shards: Sequence[Mapping[str, Any]]

    @property
    def kept(self) -> int:
        """Documents in its shards."""
        return sum(int(shard["rows"]) for shard in self.shards)


def load_part(work: Work, *, file: int, unit: int) -> Part | None:
    """A part that is there and whole; None otherwise."""
    path = work.parts / f"{work.stem(file=file, unit=unit)}.json"
    if not path.is_file():
        return None
    part = Part(**read_json(path))
    whole = all(
        (work.parts / shard["file"]).is_file()
        and (work.parts / shard["file"]).stat().st_size == shard["bytes"]
        for shard in part.shards
    )
    return part if whole else None


class PartMaker:
    """Makes parts in one process; it goes on in an input where its last part ended, so that a
    file that cannot be sought in is read once, if parts come in ascending order."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._cursor: tuple[int, _Cursor] | None = None

    def make(self, *, file: int, unit: int) -> Part:
        """Make a part, or take the one that is there. Raises `BadInput` (`open_source`)."""
        if found := load_part(self._work, file=file, unit=unit):
            return found
        work = self._work
        size = work.rules.rows_per_shard
        start, stop = unit * size, (unit + 1) * size
        if work.limit is not None:
            stop = min(stop, work.limit)
        collected = _Collected(work, stem=work.stem(file=file, unit=unit))
        number, damage = start, ""
        try:
            cursor = self._cursor_of(file)
            for row in cursor.take(start, stop):
                collected.add(row, number=number, source=cursor.source)
                number += 1
        except Damaged as error:
            damage = str(error)
            collected.note("damaged file", row=number, note=damage)
            self._cursor = None
        part = Part(
            file=file,
            unit=unit,
            rows=number - start,
            ended=number < (unit + 1) * size,
            damage=damage,
            **collected.close(),
        )
        write_json(work.parts / f"{work.stem(file=file, unit=unit)}.json", dataclasses.asdict(part))
        return part

    def _cursor_of(self, file: int) -> "_Cursor":
        if self._cursor is None or self._cursor[0] != file:
            source = open_source(self._work.inputs[file], columns=self._work.columns)
            self._cursor = (file, _Cursor(source))
        return self._cursor[1]


class _Cursor:
    """Rows of a source, going on where the last ones ended."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._rows: Iterator[Any] = iter(())
        self._next = -1

    def take(self, start: int, stop: int) -> Iterator[Any]:
        """Rows start .. stop - 1, fewer where the source ends."""
        if self._next < 0 or start < self._next or (start > self._next and self.source.seeks):
            self._rows, self._next = self.source.rows(start), start
        while self._next < start:
            if next(self._rows, self) is self:
                return
            self._next += 1
        for row in itertools.islice(self._rows, max(0, stop - start)):
            self._next += 1
            yield row


class _Collected:
    """What came of a part's rows so far, written shard by shard."""

    def __init__(self, work: Work, *, stem: str) -> None:
        self._work, self._stem = work, stem
        self._articles: list[Article] = []
        self._num_bytes = self._bytes_in = 0
        self._shards: list[dict[str, Any]] = []
        self._dropped: Counter[str] = Counter()
        self._quarantined: Counter[str] = Counter()
        self._lines: list[str] = []
        self._keys: list[dict[str, Any]] = []

    def add(self, row: Any, *, number: int, source: Source) -> None:
        """Take a raw row."""
        self._bytes_in += source.num_bytes(row)
        found = source.document(row, number=number)
        if isinstance(found, Article) and has_no_spaces(found.text):
            found = Rejected("no spaces", is_bad=True)
        if isinstance(found, Article) and (why := self._work.filters.reason(found.text)):
            found = Rejected(why, is_bad=False)
        if isinstance(found, Article):
            self._keep(found, number=number)
        elif found.is_bad:
            self.quarantine(found.reason, row=number, note=_shown(row))
        else:
            self._dropped[found.reason] += 1

    def quarantine(self, reason: str, *, row: int, note: str) -> None:
        """List a row that is bad."""
        self._quarantined[reason] += 1
        self.note(reason, row=row, note=note)

    def note(self, reason: str, *, row: int, note: str) -> None:
        """List what is bad and no row, such as the place where a file cannot be read on."""
        entry = {"row": row, "reason": reason, "note": note}
        self._lines.append(json.dumps(entry, ensure_ascii=False) + "\n")

    def close(self) -> dict[str, Any]:
        """Write what is left; the counts and shards of the part."""
        self._flush()
        folder = self._work.parts
        if self._lines:
            write_atomic(folder / f"{self._stem}.quarantine.jsonl", "".join(self._lines))
        if self._keys:
            table = pa.Table.from_pylist(self._keys, schema=keys_schema(self._work))
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression="zstd")
            write_atomic(folder / f"{self._stem}.keys.parquet", sink.getvalue().to_pybytes())
        return {
            "bytes_in": self._bytes_in,
            "dropped": dict(sorted(self._dropped.items())),
            "quarantined": dict(sorted(self._quarantined.items())),
            "shards": self._shards,
        }

    def _keep(self, article: Article, *, number: int) -> None:
        size = len(article.text.encode())
        if self._articles and self._num_bytes + size > self._work.rules.bytes_per_shard:
            self._flush()
        self._articles.append(article)
        self._num_bytes += size
        keys: dict[str, Any] = {"row": number, "id": key_of(article.id)}
        if self._work.deduplicate != "none":
            keys["text"] = text_key(article.text)
        if self._work.deduplicate == "near":
            keys["signature"] = signature(article.text).tobytes()
        self._keys.append(keys)

    def _flush(self) -> None:
        if not self._articles:
            return
        path = self._work.parts / f"{self._stem}-{len(self._shards)}.parquet"
        self._shards.append(write_shard(self._articles, path=path, rules=self._work.rules))
        self._articles, self._num_bytes = [], 0


def make_parts(
    work: Work,
    *,
    executor: Executor,
    width: int,
    share: tuple[int, int] = (0, 1),
    on_part: Callable[[Part], None] = lambda _: None,
) -> None:
    """Have every part made, or every part of share `(index, count)`, at most `width` at a time.

    How many parts an input has is known when one of them meets its end, so the likely ones are
    dealt first, in order, and then one after another until the end is seen.
    """
    assert work.parts  # looked up here, so that the workers are told
    ends: dict[int, int] = {}
    pending: set[Future[Part]] = set()

    def collect(when: str) -> None:
        nonlocal pending
        done, pending = wait(pending, return_when=when)
        for part in sorted((future.result() for future in done), key=lambda part: part.unit):
            if part.ended:
                ends[part.file] = min(part.unit, ends.get(part.file, part.unit))
            on_part(part)

    reached: list[int] = []
    for file, given in enumerate(work.inputs):
        unit = (share[0] - file) % share[1]
        rows = num_rows(given) or _stamp(given)[0] // LIKELY_ROW_BYTES
        likely = 1 + rows // work.rules.rows_per_shard
        while unit < likely and unit <= ends.get(file, unit):
            pending.add(executor.submit(make_part, work, file=file, unit=unit))
            unit += share[1]
            if len(pending) >= width:
                collect(FIRST_COMPLETED)
        reached.append(unit)
    collect(ALL_COMPLETED)
    for file, unit in enumerate(reached):
        looked_at = 0
        while file not in ends:
            # Somebody else may have met the end before us.
            while looked_at < unit and (part := load_part(work, file=file, unit=looked_at)):
                looked_at += 1
                if part.ended:
                    ends[file] = part.unit
                    break
            else:
                pending.add(executor.submit(make_part, work, file=file, unit=unit))
                collect(ALL_COMPLETED)
                unit += share[1]


def make_part(work: Work, *, file: int, unit: int) -> Part:
    """`PartMaker.make` in whatever process this is."""
    return _maker(work, work.parts).make(file=file, unit=unit)


@functools.lru_cache(maxsize=1)
def _maker(work: Work, _: Path) -> PartMaker:
    # By the place of the parts too: equal work on a file that has changed since is other work.
    return PartMaker(work)


def keys_schema(work: Work) -> pa.Schema:
    """The columns of a part's keys: one row a document, in the order of its shards."""
    fields = [("row", pa.int64()), ("id", pa.binary())]
    if work.deduplicate != "none":
        fields.append(("text", pa.binary()))
    if work.deduplicate == "near":
        fields.append(("signature", pa.binary()))
    return pa.schema(fields)


def all_parts(work: Work) -> list[Part] | None:
    """Every part of every input in order, or None while one is missing."""
    found: list[Part] = []
    for file in range(len(work.inputs)):
        for unit in itertools.count():
            part = load_part(work, file=file, unit=unit)
            if part is None:
                return None
            found.append(part)
            if part.ended:
                break
    return found


def _stamp(given: Input) -> tuple[int, int]:
    """Size and time of change of a file: enough to see that it is another one by now."""
    if not given.is_file:
        return 0, 0
    try:
        status = os.stat(given.path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _shown(row: Any) -> str:
    """The beginning of a raw row, for people to recognise it by."""
    text = row.decode(errors="replace") if isinstance(row, bytes) else str(row)
    return " ".join(text[:SHOWN_CHARS].split())

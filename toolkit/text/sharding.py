"""Turns files into the parts of a directory of shards, which any number of workers may make.

Knows parts. A part has the documents of `rows_per_shard` rows of a group of inputs (one large file,
or several small ones, see `joining`), and is a pure function of these inputs and the settings.
Refuses to know which worker makes which part (`toolkit.cluster.crew`), and when.

Until the output is complete, parts lie beside it:
    .OUT.parts-<digest>/g00000-u00000.json              what the part holds; written last
    .OUT.parts-<digest>/g00000-u00000-0.parquet         its shards, its keys, its quarantine
When all parts are there, `assembly.finish` looks for duplicates over all of them and commits OUT.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_atomic, write_json
from toolkit.text.duplicates import KEYS, key_of, normalized, signature
from toolkit.text.filters import Filters, has_no_spaces
from toolkit.text.joining import Break, JoinedRows, Row, grouped
from toolkit.text.readers import Columns
from toolkit.text.records import Article, Rejected
from toolkit.text.shards import ShardRules, write_shard
from toolkit.text.sources import Input, num_rows, reading_settings, stamp

DEDUPLICATE = ("none", "exact", "normalized", "near")
SHOWN_CHARS = 80
LIKELY_ROW_BYTES = 100  # compressed; few inputs have smaller rows
PARTS = 3  # version: raise it when the files of a part change, so that older parts are not used


@dataclass(frozen=True)
class Work:
    """Everything that decides the content of the output, and its path. `groups`, the number of
    inputs in each group, follows from the sizes of the inputs unless it is given."""

    output: Path
    inputs: tuple[Input, ...]
    columns: Columns = field(default_factory=Columns)
    rules: ShardRules = field(default_factory=ShardRules)
    filters: Filters = field(default_factory=Filters)
    deduplicate: str = "none"
    limit: int | None = None
    groups: tuple[int, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the output, besides the bytes of the inputs."""
        kinds = sorted({given.kind for given in self.inputs})
        return {
            **dataclasses.asdict(self.rules),
            "reading": [reading_settings(kind, columns=self.columns) for kind in kinds],
            "filters": dataclasses.asdict(self.filters) | {"languages": [*self.filters.languages]},
            "deduplicate": self.deduplicate,
            **({} if self.deduplicate == "none" else {"keys": KEYS}),
            "limit": self.limit,
        }

    @functools.cached_property
    def files(self) -> tuple[range, ...]:
        """The numbers of the inputs in each group. Computed once, like `parts`."""
        counts = self.groups or grouped(self.inputs, rules=self.rules)
        ends = itertools.accumulate(counts)
        return tuple(range(end - count, end) for end, count in zip(ends, counts, strict=True))

    @functools.cached_property
    def stamps(self) -> tuple[tuple[int, int], ...]:
        """The `stamp` of each input when the work began. Computed once, like `parts`."""
        return tuple(stamp(given) for given in self.inputs)

    @functools.cached_property
    def parts(self) -> Path:
        """The directory for parts, which differs for other inputs or settings. Computed once and
        passed to workers, so that all use the same one even if an input changes meanwhile."""
        seen = [
            (given.name, given.path, *stamped)
            for given, stamped in zip(self.inputs, self.stamps, strict=True)
        ]
        identity = json.dumps(
            [PARTS, seen, [len(files) for files in self.files], self.settings], sort_keys=True
        )
        digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
        return self.output.with_name(f".{self.output.name}.parts-{digest}")

    def stem(self, *, group: int, unit: int) -> str:
        """What the names of a part's files begin with."""
        return f"g{group:05d}-u{unit:05d}"


@dataclass(frozen=True)
class Part:
    """What a part holds. `ended`: its group has no rows after it. `damage`: by number, the files
    that could not be read to their end, and why."""

    group: int
    unit: int
    rows: int
    ended: bool
    bytes_in: int
    dropped: Mapping[str, int]
    quarantined: Mapping[str, int]
    damage: Mapping[str, str]
    shards: Sequence[Mapping[str, Any]]

    @property
    def kept(self) -> int:
        """The number of documents in its shards."""
        return sum(int(shard["rows"]) for shard in self.shards)


def load_part(work: Work, *, group: int, unit: int) -> Part | None:
    """The part if it exists and is complete; otherwise None."""
    path = work.parts / f"{work.stem(group=group, unit=unit)}.json"
    if not path.is_file():
        return None
    part = Part(**read_json(path))
    whole = all(
        (work.parts / shard["file"]).is_file()
        and (work.parts / shard["file"]).stat().st_size == shard["bytes"]
        for shard in part.shards
    )
    return part if whole else None


def require_unchanged(work: Work, files: Iterable[int]) -> None:
    """Raise `BadInput`, and remove all parts, if one of these inputs has changed since the work
    began."""
    for file in files:
        if stamp(given := work.inputs[file]) != work.stamps[file]:
            shutil.rmtree(work.parts, ignore_errors=True)
            raise BadInput(
                f"{given.path}: has changed while it was read; start again when it is whole"
            )


class PartMaker:
    """Makes parts in one process. In the same group it continues reading where its last part ended,
    since many files can only be read from their beginning."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._joined: tuple[int, JoinedRows] | None = None

    def make(self, *, group: int, unit: int) -> Part:
        """Make a part, or return the one that exists. Raises `BadInput` as `open_source` does, and
        if a file of the group has changed since the work began: the part could mix both contents.
        """
        if made := load_part(self._work, group=group, unit=unit):
            return made
        work = self._work
        size = work.rules.rows_per_shard
        stem = work.stem(group=group, unit=unit)
        collected = _Collected(work, stem=stem)
        rows, self._joined = self._rows_of(group), None  # after an error, do not continue from here
        for item in rows.take(unit * size, (unit + 1) * size):
            collected.add(item)
        self._joined = (group, rows)
        part = Part(group=group, unit=unit, ended=collected.rows < size, **collected.close())
        require_unchanged(work, work.files[group])  # after reading: an earlier look could miss it
        write_json(work.parts / f"{stem}.json", dataclasses.asdict(part))
        return part

    def _rows_of(self, group: int) -> JoinedRows:
        if self._joined is not None and self._joined[0] == group:
            return self._joined[1]
        work = self._work
        inputs = {file: work.inputs[file] for file in work.files[group]}
        return JoinedRows(inputs, columns=work.columns, limit=work.limit)


class _Collected:
    """The results of a part's rows so far; full shards are written at once."""

    def __init__(self, work: Work, *, stem: str) -> None:
        self._work, self._stem = work, stem
        self._articles: list[Article] = []
        self._num_bytes = self._bytes_in = 0
        self._shards: list[dict[str, Any]] = []
        self._dropped: Counter[str] = Counter()
        self._quarantined: Counter[str] = Counter()
        self._lines: list[str] = []
        self._keys: list[dict[str, Any]] = []
        self._damage: dict[str, str] = {}
        self.rows = 0

    def add(self, item: Row | Break) -> None:
        """Process a raw row, or note the place from which a file cannot be read (not a row)."""
        if isinstance(item, Break):
            self._damage[str(item.file)] = item.why
            self._note("damaged file", place=item, note=item.why)
            return
        self.rows += 1
        self._bytes_in += item.source.num_bytes(item.raw)
        document = item.source.document(item.raw, number=item.number)
        if isinstance(document, Article) and has_no_spaces(document.text):
            document = Rejected("no spaces", is_bad=True)
        if isinstance(document, Article) and (why := self._work.filters.reason(document.text)):
            document = Rejected(why, is_bad=False)
        if isinstance(document, Article):
            self._keep(document, place=item)
        elif document.is_bad:
            self._quarantined[document.reason] += 1
            self._note(document.reason, place=item, note=_shown(item.raw))
        else:
            self._dropped[document.reason] += 1

    def close(self) -> dict[str, Any]:
        """Write what is left; returns the counts and shards of the part."""
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
            "rows": self.rows,
            "bytes_in": self._bytes_in,
            "dropped": dict(sorted(self._dropped.items())),
            "quarantined": dict(sorted(self._quarantined.items())),
            "damage": self._damage,
            "shards": self._shards,
        }

    def _note(self, reason: str, *, place: Row | Break, note: str) -> None:
        entry = {"file": place.file, "row": place.number, "reason": reason, "note": note}
        self._lines.append(json.dumps(entry, ensure_ascii=False) + "\n")

    def _keep(self, article: Article, *, place: Row) -> None:
        size = len(article.text.encode())
        if self._articles and self._num_bytes + size > self._work.rules.bytes_per_shard:
            self._flush()
        self._articles.append(article)
        self._num_bytes += size
        keys: dict[str, Any] = {
            "file": place.file,
            "row": place.number,
            "id": key_of(article.id),
            "lacks_id": article.lacks_id,
        }
        if self._work.deduplicate != "none":
            keys["text"] = key_of(article.text)
        if self._work.deduplicate == "normalized":
            keys["normalized"] = key_of(normalized(article.text))
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

    The number of parts of a group is known only when one of them reaches its end. So the parts that
    probably exist are dealt first, in order, and then single ones until the end is seen.
    """
    assert work.parts and work.files  # computed here, before `work` is sent to the workers
    ends: dict[int, int] = {}
    pending: set[Future[Part]] = set()

    def collect(when: str) -> None:
        nonlocal pending
        done, pending = wait(pending, return_when=when)
        for part in sorted((future.result() for future in done), key=lambda part: part.unit):
            if part.ended:
                ends[part.group] = min(part.unit, ends.get(part.group, part.unit))
            on_part(part)

    reached: list[int] = []
    for group, files in enumerate(work.files):
        unit = (share[0] - group) % share[1]
        rows = sum(_likely_rows(work.inputs[file]) for file in files)
        likely = 1 + rows // work.rules.rows_per_shard
        while unit < likely and unit <= ends.get(group, unit):
            pending.add(executor.submit(make_part, work, group=group, unit=unit))
            unit += share[1]
            if len(pending) >= width:
                collect(FIRST_COMPLETED)
        reached.append(unit)
    collect(ALL_COMPLETED)
    for group, unit in enumerate(reached):
        looked_at = 0
        while group not in ends:
            # A worker with another share may have reached the end before us.
            while looked_at < unit and (part := load_part(work, group=group, unit=looked_at)):
                looked_at += 1
                if part.ended:
                    ends[group] = part.unit
                    break
            else:
                pending.add(executor.submit(make_part, work, group=group, unit=unit))
                collect(ALL_COMPLETED)
                unit += share[1]


def make_part(work: Work, *, group: int, unit: int) -> Part:
    """Make a part in a worker process, which keeps one `PartMaker` for its work."""
    return _maker(work, work.parts).make(group=group, unit=unit)


def _likely_rows(given: Input) -> int:
    return num_rows(given) or stamp(given)[0] // LIKELY_ROW_BYTES


@functools.lru_cache(maxsize=1)
def _maker(work: Work, _: Path) -> PartMaker:
    # The directory of parts is part of the key: if a file has changed, equal `Work` is other work.
    return PartMaker(work)


def keys_schema(work: Work) -> pa.Schema:
    """The columns of a part's keys: one row per document, in the order of its shards."""
    fields = [("file", pa.int32()), ("row", pa.int64()), ("id", pa.binary())]
    fields.append(("lacks_id", pa.bool_()))
    if work.deduplicate != "none":
        fields.append(("text", pa.binary()))
    if work.deduplicate == "normalized":
        fields.append(("normalized", pa.binary()))
    if work.deduplicate == "near":
        fields.append(("signature", pa.binary()))
    return pa.schema(fields)


def all_parts(work: Work) -> list[Part] | None:
    """All parts of all groups in order; None while one is missing."""
    parts: list[Part] = []
    for group in range(len(work.files)):
        for unit in itertools.count():
            part = load_part(work, group=group, unit=unit)
            if part is None:
                return None
            parts.append(part)
            if part.ended:
                break
    return parts


def _shown(row: Any) -> str:
    """The beginning of a raw row, by which people can recognise it."""
    text = row.decode(errors="replace") if isinstance(row, bytes) else str(row)
    return " ".join(text[:SHOWN_CHARS].split())

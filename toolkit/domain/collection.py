"""A folder of documents becomes a corpus to search, with a part to train on and parts to test on.

Knows what is split: documents, so that no passage of a test document is ever trained on, and texts
that nearly repeat another are left out before. Refuses to know how files are read (`text.sources`).
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from toolkit.base.console import Progress, say
from toolkit.base.documents import checked
from toolkit.base.errors import BadInput
from toolkit.base.files import (
    is_committed,
    read_json,
    remove_committed,
    write_atomic,
    write_json,
)
from toolkit.base.layout import (
    DOCUMENTS_FILE,
    PASSAGES_FILE,
    SEARCHED_DIR,
    SOURCE_DIR,
    SPLIT_FILE,
    TRAIN_DIR,
    TRAIN_PASSAGES_FILE,
)
from toolkit.cluster.crew import local_crew
from toolkit.settings.domain_schema import DocumentsRecipe
from toolkit.text.assembly import finish, written
from toolkit.text.folders import counts_of, overlap
from toolkit.text.passages import passages
from toolkit.text.readers import Columns
from toolkit.text.sharding import Part, Work, make_parts
from toolkit.text.shards import ShardRules, ShardSet, open_shards
from toolkit.text.sources import Found, Input, find_inputs, survey

DEV, TEST, TRAIN = "dev", "test", "train"
LARGEST_SHARE = 5  # dev and test have at most a fifth of the documents each
MARK = "#"  # between the id of a document and the number of its passage
ROWS_PER_READ = 1000


class _Made(TypedDict):
    settings: dict[str, Any]


SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "title", "url", "text", "document")])


def run(recipe: DocumentsRecipe) -> None:
    """Make the shards and the split. Raises `BadInput` when there are too few documents, and when
    `output_dir` holds those of another recipe."""
    out = Path(recipe.output_dir)
    settings = recipe.model_dump(mode="json", exclude={"output_dir"})
    found = _found(recipe)
    source_work = _source_work(recipe, inputs=found.inputs)
    if found.passed:
        say(f"{recipe.source}: {found.told}")
    if _are_there(out, settings=settings) and written(source_work):
        say(f"{out}: these documents are already there; nothing to do")
        return
    source = _shards(source_work, max_bad_fraction=recipe.max_bad_fraction)
    _require_enough(len(source), recipe=recipe)
    _write_passages(source, recipe=recipe)
    corpus = _shards(_work_of(PASSAGES_FILE, output=SEARCHED_DIR, recipe=recipe))
    document_of = _documents_of(corpus, out=out)
    part_of = split(
        document_of.values(),
        num_dev=recipe.dev_documents,
        num_test=recipe.test_documents,
        seed=recipe.seed,
    )
    _write_split(document_of, part_of=part_of, out=out)
    trained = (one for one in _records(corpus) if part_of[document_of[one["id"]]] == TRAIN)
    rows = ({**one, "document": document_of[one["id"]]} for one in trained)
    _write_passage_table(rows, path=out / TRAIN_PASSAGES_FILE)
    _shards(_work_of(TRAIN_PASSAGES_FILE, output=TRAIN_DIR, recipe=recipe))
    counts = _counts(document_of, part_of=part_of)
    passed = counts_of(found.passed)
    content = {"settings": settings, "documents": len(source), "parts": counts, "not_read": passed}
    write_json(out / DOCUMENTS_FILE, content)
    told = ", ".join(
        f"{count['documents']:,} for {part} ({count['passages']:,} passages)"
        for part, count in counts.items()
    )
    say(f"{out}: {len(source):,} documents: {told}")


def _are_there(out: Path, *, settings: dict[str, Any]) -> bool:
    if not (out / DOCUMENTS_FILE).exists():
        return False
    made = checked(
        read_json(out / DOCUMENTS_FILE), _Made, source=out / DOCUMENTS_FILE, advice="delete it"
    )["settings"]
    if different := [key for key in settings if made.get(key) != settings[key]]:
        raise BadInput(
            f"{out}: holds documents of another {different[0]} ({made.get(different[0])!r}); give "
            "another output_dir, or delete it"
        )
    # What was removed is made again.
    return all(is_committed(out / name) for name in (SOURCE_DIR, SEARCHED_DIR, TRAIN_DIR))


def split(documents: Iterable[str], *, num_dev: int, num_test: int, seed: int) -> dict[str, str]:
    """The part of each document: dev, test or train. It depends on the documents and the seed
    alone, not on their order. dev and test get at most a fifth of all each."""
    drawn = sorted(
        set(documents), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()
    )
    most = len(drawn) // LARGEST_SHARE
    num_dev, num_test = min(num_dev, most), min(num_test, most)
    parts = [DEV] * num_dev + [TEST] * num_test
    parts += [TRAIN] * (len(drawn) - len(parts))
    return dict(zip(drawn, parts, strict=True))


def _found(recipe: DocumentsRecipe) -> Found:
    path = Path(recipe.source)
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder; give the documents of your domain")
    if problem := overlap(Path(recipe.output_dir), source=path):
        raise BadInput(problem)
    return survey([path], whole_files=True)


def _source_work(recipe: DocumentsRecipe, *, inputs: tuple[Input, ...]) -> Work:
    return Work(
        output=(Path(recipe.output_dir) / SOURCE_DIR).absolute(),
        inputs=inputs,
        columns=Columns(text=recipe.text_column, id=recipe.id_column, title=recipe.title_column),
        rules=ShardRules(language=recipe.language),
        deduplicate=recipe.deduplicate,
    )


def _work_of(name: str, *, output: str, recipe: DocumentsRecipe) -> Work:
    """How a table of passages becomes shards. Duplicates among them are looked for again: passages
    of two documents may be the same where the documents are not. Those for training have none."""
    out = Path(recipe.output_dir)
    return Work(
        output=(out / output).absolute(),
        inputs=find_inputs([out / name]),
        rules=ShardRules(language=recipe.language),
        deduplicate=recipe.deduplicate if output == SEARCHED_DIR else "none",
    )


def _shards(work: Work, *, max_bad_fraction: float = 0.0) -> ShardSet:
    """The shards of `work`, made by as many processes as this one has cores."""
    if not written(work):
        num_workers = len(os.sched_getaffinity(0))
        progress = Progress(f"documents: {work.output.name}", total=None, unit="rows")

        def on_part(part: Part) -> None:
            progress.advance(part.rows)

        with local_crew(num_workers) as executor:
            make_parts(work, executor=executor, width=num_workers, on_part=on_part)
        progress.close()
        summary = finish(work, max_bad_fraction=max_bad_fraction, limit_name="max_bad_fraction")[
            "summary"
        ]
        for reason, count in {**summary["dropped"], **summary["quarantined"]}.items():
            say(f"{count:>12,} left out of {work.output.name}: {reason}")
        for name, why in summary["damaged_files"].items():
            say(f"damaged: {name}: {why}")
    return open_shards(work.output, verify=False)


def _require_enough(num_documents: int, *, recipe: DocumentsRecipe) -> None:
    if num_documents < recipe.least_documents:
        # With more documents the same command makes them anew.
        remove_committed(Path(recipe.output_dir) / SOURCE_DIR)
        raise BadInput(
            f"{recipe.source}: {num_documents} documents after duplicates were left out, and at "
            f"least {recipe.least_documents} are needed, to train on some and to test on others. "
            "Give more documents, or cut a long one into files (least_documents lowers the limit)"
        )


def _write_passages(source: ShardSet, *, recipe: DocumentsRecipe) -> None:
    """Write the passages of all documents, each with the name of its document."""

    def rows() -> Iterator[dict[str, str]]:
        for record in _records(source):
            name, most = without_blanks(record["id"]), recipe.passage_chars
            texts = [record["text"]]
            if most is not None and len(texts[0]) > most:
                texts = passages(texts[0], max_chars=most, language=recipe.language)
            if len(texts) == 1:
                yield {**record, "id": name, "document": name}
                continue
            for number, text in enumerate(texts):
                yield {**record, "text": text, "id": f"{name}{MARK}{number}", "document": name}

    _write_passage_table(rows(), path=Path(recipe.output_dir) / PASSAGES_FILE)


def without_blanks(name: str) -> str:
    """A name as an id that files of judgements can hold, which separate columns by white space: its
    white space, % itself, and the mark of passages are written as in addresses."""
    return re.sub(r"[\s%#]", lambda found: quote(found[0]), name)


def _records(shards: ShardSet) -> Iterator[dict[str, str]]:
    for start in range(0, len(shards), ROWS_PER_READ):
        yield from shards.records(start, start + ROWS_PER_READ)


def _write_passage_table(rows: Iterable[Mapping[str, str]], *, path: Path) -> None:
    _write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), path=path)


def _write_table(table: pa.Table, *, path: Path) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROWS_PER_READ)
    write_atomic(path, sink.getvalue().to_pybytes())


def _documents_of(corpus: ShardSet, *, out: Path) -> dict[str, str]:
    """The document of each passage of the corpus, whose duplicates are gone."""
    table = pq.read_table(out / PASSAGES_FILE, columns=["id", "document"])
    names = dict(zip(table["id"].to_pylist(), table["document"].to_pylist(), strict=True))
    return {record["id"]: names[record["id"]] for record in _records(corpus)}


def _write_split(document_of: Mapping[str, str], *, part_of: Mapping[str, str], out: Path) -> None:
    documents = list(document_of.values())
    parts = [part_of[document] for document in documents]
    columns = {"id": list(document_of), "part": parts, "document": documents}
    _write_table(pa.table(columns), path=out / SPLIT_FILE)


def _counts(
    document_of: Mapping[str, str], *, part_of: Mapping[str, str]
) -> dict[str, dict[str, int]]:
    documents = Counter(part_of.values())
    of_passages = Counter(part_of[document] for document in document_of.values())
    return {
        part: {"documents": documents[part], "passages": of_passages[part]}
        for part in (TRAIN, DEV, TEST)
    }

"""From the questions of all units to what is trained on and evaluated with, and an account of it.

    OUT/pairs/  OUT/queries.jsonl  OUT/judgements.tsv  OUT/dropped.jsonl

Knows filters, pairs and BEIR's files. Refuses to know how questions are written. What is made here
is a pure function of the units, the corpus and the settings.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from toolkit.base.console import at_work
from toolkit.base.documents import Count, Digest, checked
from toolkit.base.errors import BadInput, RunFailed
from toolkit.base.files import read_json, remove_committed, sha256_of, write_atomic
from toolkit.base.layout import (
    DROPPED_FILE,
    JUDGEMENTS_FILE,
    MANIFEST_FILE,
    PAIR_DIR,
    QUERIES_FILE,
)
from toolkit.base.sealed import is_sealed
from toolkit.domain.filters import (
    NOT_FOUND,
    NOTHING,
    REASONS,
    REPEATED,
    Source,
    fault_of,
    not_found_again,
    repeated,
)
from toolkit.domain.output import AGAIN, QuestionOutput
from toolkit.domain.own_words import own_pairs
from toolkit.domain.writing import Question
from toolkit.settings.questions_schema import QuestionFilters, QuestionsRecipe
from toolkit.text.pairs import Pair, PairTask, checked_manifest, write_pairs
from toolkit.text.shards import ShardSet

TASK = "questions"
SHOWN = 5  # questions in an error message
FILES = (QUERIES_FILE, JUDGEMENTS_FILE, DROPPED_FILE)


class Counts(TypedDict):
    """What became of every document and every question."""

    documents: Count
    without_text: Count
    asked: Count
    written: Count
    dropped: dict[str, Count]
    kept: Count
    documents_with_questions: Count
    tokens: Count


def settings_of(recipe: QuestionsRecipe) -> dict[str, Any]:
    """What decides the result besides the questions as they were written."""
    sections = {"filters": recipe.filters, "own_words": recipe.own_words}
    settings = {name: section.model_dump(mode="json") for name, section in sections.items()}
    return {**settings, "instruction": recipe.instruction}


def finish(
    output: QuestionOutput, *, recipe: QuestionsRecipe, shards: ShardSet, rows_D: NDArray[np.int64]
) -> dict[str, Any]:
    """Write pairs, queries, judgements and what was dropped; returns the entries of the manifest:
    `counts`, those of the documents' `own_pairs`, and the digests of the `files`. Raises
    `RunFailed` when no question is left, with some of what was written, and when the counts do not
    add up."""
    questions = [one for unit in output.units for one in output.questions(unit)]
    records = {row: shards.record(row) for row in rows_D.tolist()}
    row_of = {record["id"]: row for row, record in records.items()}
    with at_work("questions: filters them"):
        faults = faults_of(
            questions, rows=[row_of[one.id] for one in questions], shards=shards, recipe=recipe
        )
    counts = counts_of(questions, faults=faults, texts=[one["text"] for one in records.values()])
    if fault := counts_fault(counts, per_document=recipe.per_document):
        raise RunFailed(f"{output.directory}: the questions do not add up: {fault}")
    if not counts["kept"]:
        raise RunFailed(nothing_left(questions, faults=faults, where=str(output.directory)))
    kept = [one for one, fault in zip(questions, faults, strict=True) if not fault]
    sets = {
        TASK: (Pair(one.question, records[row_of[one.id]]["text"]) for one in kept),
        **own_pairs(records.values(), settings=recipe.own_words, seed=recipe.seed),
    }
    remove_committed(output.directory / PAIR_DIR)
    written = write_pairs(
        [
            (PairTask(name, query_instruction=recipe.instruction), pairs)
            for name, pairs in sets.items()
        ],
        output=output.directory / PAIR_DIR,
        sources=[{"questions": output.digest, "corpus": shards.digest}],
        quarantine=[],
    )
    for name, content in files_of(questions, faults=faults).items():
        write_atomic(output.directory / name, content)
    places = [PAIR_DIR + "/" + MANIFEST_FILE, *FILES]
    return {
        "counts": counts,
        "own_pairs": {one["name"]: one["rows"] for one in written["sets"] if one["name"] != TASK},
        "files": {name: sha256_of(output.directory / name) for name in places},
    }


def faults_of(
    questions: Sequence[Question],
    *,
    rows: Sequence[int],
    shards: ShardSet,
    recipe: QuestionsRecipe,
) -> list[str]:
    """Why each question is left out; empty where it is kept. `rows` are those of their documents
    in the corpus."""
    filters = recipe.filters
    faults = own_faults(questions, rows=rows, shards=shards, filters=filters)
    good = [place for place, fault in enumerate(faults) if not fault]
    for place, again in zip(good, repeated([questions[p].question for p in good]), strict=True):
        faults[place] = REPEATED * again
    if filters.round_trip_top is None:
        return faults
    good = [place for place, fault in enumerate(faults) if not fault]
    lost = not_found_again(
        [questions[place].question for place in good],
        rows=[rows[place] for place in good],
        texts=(shards.text(row) for row in range(shards.num_rows)),
        top=filters.round_trip_top,
    )
    for place, is_lost in zip(good, lost, strict=True):
        faults[place] = NOT_FOUND * is_lost
    return faults


def own_faults(
    questions: Sequence[Question],
    *,
    rows: Sequence[int],
    shards: ShardSet,
    filters: QuestionFilters,
) -> list[str]:
    """Why each question is left out by itself and its document (`filters.fault_of`)."""
    faults, source, of = [], None, -1
    for question, row in zip(questions, rows, strict=True):
        if source is None or row != of:  # the questions of a document follow each other
            source, of = Source.of(shards.text(row), filters=filters), row
        faults.append(fault_of(question, source=source, filters=filters))
    return faults


def counts_of(
    questions: Sequence[Question], *, faults: Sequence[str], texts: Sequence[str]
) -> Counts:
    """The account of all documents and questions."""
    dropped = Counter(fault for fault in faults if fault)
    good = {one.id for one, fault in zip(questions, faults, strict=True) if not fault}
    return Counts(
        documents=len(texts),
        without_text=sum(not text.strip() for text in texts),
        asked=len(questions),
        written=len(questions) - dropped[NOTHING],
        dropped={reason: dropped[reason] for reason in REASONS if dropped[reason]},
        kept=sum(not fault for fault in faults),
        documents_with_questions=len(good),
        tokens=sum(one.tokens for one in questions),
    )


def counts_fault(counts: Counts, *, per_document: int) -> str:
    """What does not add up; empty if everything does."""
    asked = (counts["documents"] - counts["without_text"]) * per_document
    if counts["asked"] != asked:
        return f"{counts['asked']} questions were asked, and {asked} have to be"
    left = counts["kept"] + sum(counts["dropped"].values())
    return "" if left == asked else f"{asked} questions were asked, and {left} are accounted for"


def counts_line(counts: Counts, *, per_document: int) -> str:
    """What became of every document and question, in one line."""
    dropped = ", ".join(f"{number:,} {reason}" for reason, number in counts["dropped"].items())
    return (
        f"{counts['documents']:,} documents, {counts['without_text']:,} of them without text; "
        f"{per_document} questions each: {counts['asked']:,} asked, {counts['kept']:,} kept "
        f"of {counts['documents_with_questions']:,} documents, "
        f"{counts['asked'] - counts['kept']:,} dropped" + (f" ({dropped})" if dropped else "")
    )


def files_of(questions: Sequence[Question], *, faults: Sequence[str]) -> dict[str, str]:
    """The files beside the pairs, by name. The id of a query is that of its document and the
    number of the question, from 1."""
    queries, judgements, dropped = [], ["query-id\tcorpus-id\tscore\n"], []
    for one, fault in zip(questions, faults, strict=True):
        if fault:
            row = {"id": one.id, "number": one.number + 1, "question": one.question}
            dropped.append(_line({**row, "reason": fault}))
            continue
        name = f"{one.id}-q{one.number + 1}"
        queries.append(_line({"_id": name, "text": one.question}))
        judgements.append(f"{name}\t{one.id}\t1\n")
    contents = ("".join(queries), "".join(judgements), "".join(dropped))
    return dict(zip(FILES, contents, strict=True))


def nothing_left(questions: Sequence[Question], *, faults: Sequence[str], where: str) -> str:
    """The error of a generator of which nothing can be used, with some of what it wrote."""
    reasons = ", ".join(f"{number} {reason}" for reason, number in Counter(faults).most_common())
    shown = "; ".join(repr(one.question[:80]) for one in questions[:SHOWN])
    return (
        f"{where}: none of {len(questions)} questions is left ({reasons}). It wrote {shown}. "
        "Another generator.model, prompt or examples may do; the filters are settings, too"
    )


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


class Finished(TypedDict):
    """The keys that a manifest of questions must have to be checked."""

    digest: Digest
    bounds: list[Count]
    per_document: Count
    settings: dict[str, Any]
    counts: Counts
    files: dict[str, Digest]
    units: dict[str, dict[str, Any]]


def check_output(directory: Path) -> Counts:
    """Compare every byte of finished questions with the manifest; returns its counts. Raises
    `BadInput`, which names what is absent or damaged."""
    path = directory / MANIFEST_FILE
    manifest = checked(read_json(path), Finished, source=path, advice=AGAIN)
    if not is_sealed(manifest):
        raise BadInput(f"{path}: is damaged (its digest differs); {AGAIN}")
    from toolkit.encoding.units import units

    output = QuestionOutput(
        directory, manifest["digest"], units(manifest["bounds"]), manifest["settings"], lambda _: {}
    )
    if not output.is_in_manifest(unit.name for unit in output.units):
        raise BadInput(f"{path}: does not repeat the markers of its units; {AGAIN}")
    if damaged := output.damaged(output.units):
        raise BadInput(f"{directory}: unit {damaged[0].name} is damaged; {AGAIN}")
    for name, digest in manifest["files"].items():
        if not (directory / name).is_file() or sha256_of(directory / name) != digest:
            raise BadInput(f"{directory / name}: is missing or damaged; {AGAIN}")
    checked_manifest(directory / PAIR_DIR, verify=True)
    if fault := counts_fault(manifest["counts"], per_document=manifest["per_document"]):
        raise BadInput(f"{path}: does not add up: {fault}; {AGAIN}")
    return manifest["counts"]

"""Which documents of a corpus get questions, and what makes a set of questions what it is.

Knows ids, parts and digests. Refuses to know the model and the texts. Shapes: N rows of the corpus,
D chosen documents.
"""

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from toolkit.base.errors import BadInput
from toolkit.base.files import digest_of
from toolkit.encoding.units import bounds, facts_digest
from toolkit.settings.questions_schema import QuestionsRecipe
from toolkit.text.shards import ShardSet, ids_of_shards

FORMAT = "toolkit-questions/1"
COLUMNS = ("id", "part")


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The rows (D,) of the corpus that get questions, in order, with their ids."""

    rows_D: NDArray[np.int64]
    ids: list[str]

    @property
    def digest(self) -> str:
        """The digest of the chosen ids, in order."""
        return hashlib.sha256("\0".join(self.ids).encode()).hexdigest()


def choose(recipe: QuestionsRecipe, shards: ShardSet) -> Chosen:
    """The documents of the recipe's part, or all. Raises `BadInput` when two documents of the
    corpus have one id, for ids that are not in the corpus or have white space, and when no document
    is left."""
    found = ids_of_shards(Path(recipe.corpus.input), digest=shards.digest)
    if found is None:
        raise BadInput(f"corpus.input={recipe.corpus.input}: has changed since it was opened")
    ids = [one for some in found for one in some]
    row_of = dict(zip(ids, range(len(ids)), strict=True))
    if len(row_of) < len(ids):
        twice = next(one for one, count in Counter(ids).items() if count > 1)
        raise BadInput(
            f"corpus.input={recipe.corpus.input}: two documents have the id {twice!r}; make the "
            "shards with unique ids"
        )
    if recipe.documents is not None:
        wanted = _of_part(Path(recipe.documents), part=str(recipe.part))
        if strange := sorted(wanted - row_of.keys()):
            raise BadInput(
                f"documents={recipe.documents}: {len(strange)} of {len(wanted)} ids are not in "
                f"corpus.input={recipe.corpus.input}, such as {strange[0]!r}"
            )
        ids = [one for one in ids if one in wanted]
    if not ids:
        raise BadInput(f"corpus.input={recipe.corpus.input}: has no document")
    if broken := [one for one in ids if len(one.split()) != 1]:
        raise BadInput(
            f"corpus.input={recipe.corpus.input}: the id {broken[0]!r} has white space, which "
            "files of judgements cannot hold; make the shards with other ids"
        )
    return Chosen(np.array([row_of[one] for one in ids], dtype=np.int64), ids)


def _of_part(file: Path, *, part: str) -> set[str]:
    """The ids of a part. Raises `BadInput` for a file that is no list of documents, and for a part
    that it lacks."""
    try:
        table = pq.read_table(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadInput(f"documents={file}: cannot be read as Parquet ({error})") from error
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        has = ", ".join(table.column_names)
        raise BadInput(f"documents={file}: has no column {missing[0]!r}; it has {has}")
    columns = {name: table[name].to_pylist() for name in COLUMNS}
    for name, values in columns.items():
        if wrong := [value for value in values if not isinstance(value, str)]:
            raise BadInput(
                f"documents={file}: column {name!r} holds {wrong[0]!r}, which is no text"
            )
    if twice := [one for one, count in Counter(columns["id"]).items() if count > 1]:
        raise BadInput(f"documents={file}: the id {twice[0]!r} stands in it twice")
    chosen = {i for i, of in zip(columns["id"], columns["part"], strict=True) if of == part}
    if not chosen:
        parts = ", ".join(sorted(set(columns["part"]))) or "none"
        raise BadInput(f"documents={file}: no document of part={part}; its parts are {parts}")
    return chosen


def identity(
    recipe: QuestionsRecipe,
    *,
    shards: ShardSet,
    chosen: Chosen,
    model_digest: str,
    asked: dict[str, Any],
) -> dict[str, Any]:
    """The facts that decide what is written: only equal ones may share an output directory. `asked`
    is how the model is asked. Filters and the instruction are no part of them: they decide what
    becomes of the questions, which need not be written anew for that."""
    corpus = recipe.corpus
    facts = {
        "format": FORMAT,
        "corpus": shards.digest,
        "documents": chosen.digest,
        "model": model_digest,
        "rows": len(chosen.rows_D),
        "unit_documents": corpus.unit_documents,
        "max_tokens": corpus.max_tokens,
        "generator": recipe.generator.facts(),
        "prompt": digest_of(asked),
        "per_document": recipe.per_document,
        "seed": recipe.seed,
        "bounds": bounds(
            shards.num_chars[chosen.rows_D],
            unit_rows=corpus.unit_documents,
            max_tokens=corpus.max_tokens,
        ),
    }
    return {**facts, "digest": facts_digest(facts)}

"""Make again what is damaged in a directory of shards, from the files that it was made from.

Knows how a shard follows from its input: the same part, without the documents that were left out as
duplicates. What does not come out with the recorded digest is not put in place.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.files import COMMIT_MARKER, BadInput, sha256_of, write_atomic, write_json
from toolkit.text.assembly import DUPLICATES, SUMMARY
from toolkit.text.copies import CACHE
from toolkit.text.filters import Filters
from toolkit.text.manifest import Manifest
from toolkit.text.readers import Columns
from toolkit.text.sharding import PartMaker, Work
from toolkit.text.shards import ShardRules, write_table
from toolkit.text.sources import Input
from toolkit.text.verify import Fault, believable_manifest, verify


def repair(directory: Path, *, inputs: Sequence[Input]) -> list[Fault]:
    """Mend what can be mended; returns the faults that are left.

    Shards are made again from `inputs`, tokens are deleted (whoever needs them makes them), the
    summary comes from the manifest. Raises `BadInput` when an input is not the recorded one.
    """
    manifest = believable_manifest(directory)
    for fault in verify(directory):
        if fault.shard is not None and inputs:
            _remake(directory, manifest=manifest, number=fault.shard, inputs=inputs)
        elif fault.file == SUMMARY:
            write_json(directory / SUMMARY, manifest["summary"])
        elif fault.file.startswith(f"{CACHE}/"):
            path = directory / fault.file
            for doomed in (path, path.with_suffix(".json")):
                doomed.unlink(missing_ok=True)
    left = verify(directory)
    if [fault.file for fault in left] == [COMMIT_MARKER]:
        write_atomic(directory / COMMIT_MARKER, "")  # everything that it stands for is there
        return []
    return left


def _remake(directory: Path, *, manifest: Manifest, number: int, inputs: Sequence[Input]) -> None:
    entry = manifest["shards"][number]
    file, unit, piece = entry["part"]
    _check_inputs(manifest, file=file, inputs=inputs)
    folder = Path(tempfile.mkdtemp(prefix=".repair-", dir=directory.parent))
    try:
        work = _work(manifest, output=folder / directory.name, inputs=tuple(inputs))
        part = PartMaker(work).make(file=file, unit=unit)
        stem = work.stem(file=file, unit=unit)
        keys = pq.read_table(work.parts / f"{stem}.keys.parquet")["row"].to_numpy()
        first = sum(int(shard["rows"]) for shard in part.shards[:piece])
        rows = keys[first : first + int(part.shards[piece]["rows"])]
        made = work.parts / str(part.shards[piece]["file"])
        kept = ~np.isin(rows, _left_out(directory, name=inputs[file].name))
        if not kept.all():
            write_table(pq.read_table(made).filter(pa.array(kept)), path=made)
        if sha256_of(made) == entry["sha256"]:
            os.replace(made, directory / entry["file"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_inputs(manifest: Manifest, *, file: int, inputs: Sequence[Input]) -> None:
    names = [source["name"] for source in manifest["sources"]]
    if [given.name for given in inputs] != names:
        raise BadInput(
            f"the shards were made of {', '.join(names)}; give the same inputs, in that order"
        )
    wanted, given = manifest["sources"][file], inputs[file]
    if given.is_file and sha256_of(Path(given.path)) != wanted["sha256"]:
        raise BadInput(f"{given.path}: is not the file that the shards were made of")


def _left_out(directory: Path, *, name: str) -> Any:
    """The rows of an input that were left out as duplicates."""
    path = directory / DUPLICATES
    if not path.is_file():
        return np.array([], dtype=np.int64)
    table = pq.read_table(path)
    here = np.array([file == name for file in table["file"].to_pylist()], dtype=np.bool_)
    return table["row"].to_numpy()[here]


def _work(manifest: Manifest, *, output: Path, inputs: tuple[Input, ...]) -> Work:
    """The work that gave this directory."""
    told = manifest["settings"]
    tables: dict[str, str] = next((how for how in told["reading"] if "text" in how), {})
    columns = {field.name: tables[field.name] for field in fields(Columns) if tables}
    filters = {**told["filters"], "languages": tuple(told["filters"]["languages"])}
    return Work(
        output=output,
        inputs=inputs,
        columns=Columns(**columns),
        rules=ShardRules(**{field.name: told[field.name] for field in fields(ShardRules)}),
        filters=Filters(**filters),
        deduplicate=told["deduplicate"],
        limit=told["limit"],
    )

"""Remakes damaged files in a directory of shards from the files that the shards were made from.

Knows how a shard follows from its input: the same part, without the documents that were left out as
duplicates. A file that does not get the recorded digest is not put in place.
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

from toolkit.base.errors import BadInput
from toolkit.base.files import sha256_of, write_atomic, write_json
from toolkit.base.layout import COMMIT_MARKER
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
    """Repair what can be repaired; returns the faults that are left.

    Shards are made again from `inputs`. Damaged token files are deleted, and are made again when
    they are needed. The summary is copied from the manifest. Raises `BadInput` when an input is not
    the recorded one.
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
        write_atomic(directory / COMMIT_MARKER, "")  # the directory was just verified as complete
        return []
    return left


def reads_whole_files(directory: Path) -> bool:
    """Whether each text file was one document of these shards."""
    reading = believable_manifest(directory)["settings"].get("reading", [])
    return any(one.get("kind") == "file" for one in reading)


def _remake(directory: Path, *, manifest: Manifest, number: int, inputs: Sequence[Input]) -> None:
    entry = manifest["shards"][number]
    group, unit, piece = entry["part"]
    _check_names(manifest, inputs=inputs)
    folder = Path(tempfile.mkdtemp(prefix=".repair-", dir=directory.parent))
    try:
        work = _work(manifest, output=folder / directory.name, inputs=tuple(inputs))
        for file in work.files[group]:
            _check_input(manifest["sources"][file], given=inputs[file])
        # Which rows are in a shard is known only after making its whole part.
        part = PartMaker(work).make(group=group, unit=unit)
        stem = work.stem(group=group, unit=unit)
        first = sum(int(shard["rows"]) for shard in part.shards[:piece])
        keys = pq.read_table(work.parts / f"{stem}.keys.parquet", columns=["file", "row"])
        made = work.parts / str(part.shards[piece]["file"])
        left_out = _left_out(directory)
        kept = np.array(
            [
                (inputs[key["file"]].name, key["row"]) not in left_out
                for key in keys.slice(first, int(part.shards[piece]["rows"])).to_pylist()
            ]
        )
        if not kept.all():
            write_table(pq.read_table(made).filter(pa.array(kept)), path=made)
        if sha256_of(made) == entry["sha256"]:
            os.replace(made, directory / entry["file"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_names(manifest: Manifest, *, inputs: Sequence[Input]) -> None:
    names = [source["name"] for source in manifest["sources"]]
    if [given.name for given in inputs] != names:
        raise BadInput(
            f"the shards were made of {', '.join(names)}; give the same inputs, in that order"
        )


def _check_input(wanted: dict[str, Any], *, given: Input) -> None:
    path = Path(given.path)
    if given.is_file and (sha256_of(path) if path.is_file() else "") != wanted["sha256"]:
        raise BadInput(f"{path}: is not the file that the shards were made of")


def _left_out(directory: Path) -> set[tuple[str, int]]:
    """The (input, row) of each document that was left out as a duplicate."""
    path = directory / DUPLICATES
    if not path.is_file():
        return set()
    table = pq.read_table(path, columns=["file", "row"])
    return set(zip(table["file"].to_pylist(), table["row"].to_pylist(), strict=True))


def _work(manifest: Manifest, *, output: Path, inputs: tuple[Input, ...]) -> Work:
    """The `Work` that made this directory, rebuilt from the settings in its manifest."""
    settings = manifest["settings"]
    tables: dict[str, str] = next((how for how in settings["reading"] if "text" in how), {})
    columns = {field.name: tables[field.name] for field in fields(Columns) if tables}
    filters = {**settings["filters"], "languages": tuple(settings["filters"]["languages"])}
    return Work(
        output=output,
        inputs=inputs,
        columns=Columns(**columns),
        rules=ShardRules(**{field.name: settings[field.name] for field in fields(ShardRules)}),
        filters=Filters(**filters),
        deduplicate=settings["deduplicate"],
        limit=settings["limit"],
        # Manifests older than the joining of files have no groups: each file was its own group.
        groups=tuple(manifest.get("groups", [1] * len(inputs))),
    )

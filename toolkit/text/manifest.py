"""The manifest of a committed directory: its contents, and the digests of its files and of itself.

Knows JSON and digests. Refuses to know what the files hold.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.base.errors import BadInput
from toolkit.base.files import is_committed, read_json, sha256_of, write_json
from toolkit.base.layout import MANIFEST_FILE
from toolkit.base.sealed import is_sealed, sealed

Manifest = dict[str, Any]


def write_manifest(folder: Path, content: Mapping[str, Any]) -> Manifest:
    """Write the manifest of a directory with its own digest in it; returns it."""
    whole = sealed(content)
    write_json(folder / MANIFEST_FILE, whole)
    return whole


def read_manifest(
    directory: Path, *, form: str, how_to_make: str, older: Sequence[str] = ()
) -> Manifest:
    """The manifest of a complete directory, in the format `form` or one of the `older` formats.
    Raises `BadInput`, which says how to make such a directory."""
    if not directory.is_dir():
        raise BadInput(f"{directory}: no such directory; {how_to_make} {directory}")
    if not is_committed(directory):
        state = (
            "was not written to its end"
            if (directory / MANIFEST_FILE).exists()
            else "has no shards"
        )
        raise BadInput(f"{directory}: {state}; {how_to_make} {directory}")
    path = directory / MANIFEST_FILE
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") not in (form, *older):
        raise BadInput(f"{path}: is not a manifest of the format {form}; {again(directory)}")
    if not is_sealed(manifest):
        raise BadInput(f"{path}: is damaged (its digest differs); {again(directory)}")
    return manifest


def check_files(
    directory: Path, entries: Iterable[Mapping[str, Any]], *, names: re.Pattern[str], verify: bool
) -> None:
    """Raise `BadInput` if a file is absent or differs from its entry in size or (with `verify`) in
    SHA-256, or if an entry names a file outside the directory."""
    # All names first: a manifest that names a file elsewhere must not make us read that file.
    listed = list(entries)
    for entry in listed:
        if not names.fullmatch(str(entry.get("file"))):
            raise BadInput(
                f"{directory / MANIFEST_FILE}: names the file {entry.get('file')!r}, not a shard "
                "in this directory"
            )
    for entry in listed:
        if problem := file_problem(directory, entry, verify=verify):
            raise BadInput(f"{directory / entry['file']}: {problem}; {again(directory)}")


def file_problem(directory: Path, entry: Mapping[str, Any], *, verify: bool) -> str:
    """What is wrong with the file that an entry names; empty if nothing is."""
    path = directory / entry["file"]
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"is damaged ({size} bytes, not {entry['bytes']})"
    if verify and sha256_of(path) != entry["sha256"]:
        return "is damaged (its SHA-256 differs)"
    return ""


def again(directory: Path) -> str:
    """The advice for a damaged directory, as the end of an error message."""
    return f"delete {directory} and make it again, or copy it again"

"""Files that are either whole or absent: atomic writes, committed directories, digests.

Knows the file system. Refuses to know what is inside a file.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

COMMIT_MARKER = "COMMITTED"


class RunFailed(RuntimeError):
    """A run that cannot go on; the message says why, and a traceback would say nothing more."""


class NodeFault(RunFailed):
    """What this node cannot do, and another could: a device that is broken."""


class BadInput(ValueError):
    """What a person gave cannot be used; the message is one line that says what would do.

    Doors print it and exit with code 2. Anything else that is raised is a defect of ours.
    """


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an `OSError` that names no file name `path`: a write to an open file says only that the
    disk is full, and not which."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` so that a reader sees the old file or the new one, never a part."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        # The buffer is written when the file is closed, at the latest: inside of `naming`.
        with naming(path), temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, in an order that does not depend on how it was built."""
    write_atomic(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The parsed content of a JSON file; `BadInput` when it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise BadInput(f"{path}: is not valid JSON ({error})") from error
    except RecursionError as error:
        raise BadInput(f"{path}: is not valid JSON of ours (nested too deeply)") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a file, in order; none where there is no file. A line that a killed writer
    has cut short, or that is no JSON object, is left out."""
    rows = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_of(content: Mapping[str, Any]) -> str:
    """The hexadecimal SHA-256 of what JSON says, however it is written down."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def committed_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` whole, or not at all.

    Order: files, fsync, marker, fsync, one rename: there is no moment at which `path` is a part.
    When another process has committed the same path in the meantime, its directory stands and ours
    is dropped. Raises `BadInput` when
    `path` holds what we did not write: it is never removed.
    """
    _refuse_foreign(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with naming(path):
            yield temporary
            publish(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, path: Path) -> None:
    """Make a finished temporary directory the committed `path`, as `committed_directory` does."""
    for file in sorted(temporary.rglob("*")):
        sync(file)
    write_atomic(temporary / COMMIT_MARKER, "")
    if is_committed(path):
        return
    _refuse_foreign(path)
    try:
        os.rename(temporary, path)
    except OSError:
        if is_committed(path):  # another process was quicker
            return
        raise
    sync(path.parent)


def _refuse_foreign(path: Path) -> None:
    if is_committed(path) or not path.exists():
        return
    if not path.is_dir() or any(path.iterdir()):
        raise BadInput(f"{path}: is there already and not ours to replace; choose another")


def is_committed(path: Path) -> bool:
    """Whether a directory was written to its end."""
    return (path / COMMIT_MARKER).is_file()


def remove_committed(path: Path) -> None:
    """Remove a committed directory, if it is there, so that its half is never taken for whole."""
    if is_committed(path):
        doomed = temporary_of(path)
        os.rename(path, doomed)
        shutil.rmtree(doomed)


def remove_temporaries(parent: Path, *names: str) -> None:
    """Remove what killed writers of these names (of any) left in `parent`; only where there is a
    single writer."""
    for name in names or ("*",):
        for path in parent.glob(f".{name}.*tmp"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def newest_committed(parent: Path, prefix: str) -> Path | None:
    """The committed directory `prefix<number>` with the largest number, found by scanning.

    A scan, not a pointer file: a pointer can fail to be written after a whole save.
    """
    found = [
        (int(path.name.removeprefix(prefix)), path)
        for path in parent.glob(f"{prefix}*")
        if path.name.removeprefix(prefix).isdigit() and is_committed(path)
    ]
    return max(found)[1] if found else None


def temporary_of(path: Path) -> Path:
    """Where a path's content is written before it is whole, beside it."""
    # Host and process in the name: two writers of one path must never share a temporary.
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def is_abandoned(temporary: Path, *, old_s: float) -> bool:
    """Whether nobody writes a `temporary_of` any more: its process here is gone, or it is of
    another host and was not written to for `old_s` seconds."""
    rest, _, process = temporary.name.removesuffix(".tmp").rpartition(".")
    if rest.endswith(f".{socket.gethostname()}"):
        return not Path(f"/proc/{process}").exists()
    try:
        return time.time() - temporary.stat().st_mtime > old_s
    except FileNotFoundError:
        return False


def sync(path: Path) -> None:
    """Have the file system keep a file's content, or a directory's entries, over a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files that are either whole or absent: atomic writes, committed directories, digests.

Knows the file system. Refuses to know what is inside a file.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.base.errors import BadInput
from toolkit.base.layout import COMMIT_MARKER

# The errors of `link` on file systems without hard links (FAT, some network and FUSE ones).
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
TURN_S, TURN_POLL_S = 10.0, 0.02  # how long to wait for our turn, and how often to look


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put `path` into any `OSError` that names no file: a failed write to an open file says that
    the disk is full, but not which file was being written."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` so that a reader sees the whole old file or the whole new one."""
    with _written(path, content) as temporary:
        os.replace(temporary, path)
    sync(path.parent)


def create_atomic(path: Path, content: bytes | str) -> bool:
    """Write `content` if there is no such file yet; returns whether we wrote it. If several
    processes try at once, exactly one succeeds. A reader sees no file or the whole file.

    To claim a directory, create its file this way and then read it back, whoever created it:
    checking first and writing afterwards would let two processes pass the check.
    """
    with _written(path, content) as temporary:
        ours = place_new(temporary, path)
        if not ours:
            temporary.unlink(missing_ok=True)
    return ours


def place_new(temporary: Path, path: Path) -> bool:
    """Rename a finished temporary file, which lies beside `path`, to `path`, unless a file of that
    name exists by now. Returns whether it was renamed; if not, the temporary file stays."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        # NFS may lose a reply and repeat the request: the file in our way is then our own.
        if not _is_same(temporary, path):
            return False
    except FileNotFoundError:
        # A process that took us for dead removed the temporary file. That does no harm if another
        # process has put its own file in place by now.
        if not path.exists():
            raise
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if not _place_in_turn(temporary, path):
            return False
    temporary.unlink(missing_ok=True)
    sync(path.parent)
    return True


def _place_in_turn(temporary: Path, path: Path) -> bool:
    """`place_new` without hard links. Only the process that has created the file `.NAME.turn` may
    look and rename; the others wait."""
    turn, until = path.with_name(f".{path.name}.turn"), time.monotonic() + TURN_S
    while True:
        try:
            os.close(os.open(turn, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            break
        except FileExistsError:
            if path.exists():
                return False
            if time.monotonic() > until:
                why = f"for {TURN_S:.0f} s somebody has been creating {path.name}"
                raise BadInput(f"{turn}: {why}; if nobody is, delete this file") from None
            time.sleep(TURN_POLL_S)
    try:
        if path.exists():
            return False
        os.replace(temporary, path)
        return True
    finally:
        turn.unlink(missing_ok=True)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _written(path: Path, content: bytes | str) -> Iterator[Path]:
    """Yield a temporary file beside `path` with this content, synced to disk; any failure removes
    it."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        # Closing the file may still write its buffer, so this happens inside `naming` too.
        with naming(path), temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, with sorted keys, so that equal contents give equal bytes."""
    write_atomic(path, _as_json(content))


def create_json(path: Path, content: Any) -> bool:
    """Write JSON as `create_atomic` does; returns whether we wrote it."""
    return create_atomic(path, _as_json(content))


def _as_json(content: Any) -> str:
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


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


class RepeatedName(ValueError):
    """A JSON object has a name twice, so it is unknown which of the two values is meant."""


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The `object_pairs_hook` for JSON that we did not write; raises `RepeatedName`."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise RepeatedName("a name twice in a JSON object")
    return content


def append_line(path: Path, line: str) -> None:
    """Append a line to a file. Other processes may append at the same moment; no line is lost. If
    a killed writer left an incomplete line at the end, that line is ended first."""
    with path.open("a+b") as handle:
        end = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, end - 1))
        is_cut = handle.read(1) not in (b"", b"\n")
        handle.write(f"{chr(10) * is_cut}{line}\n".encode())
        handle.flush()
        os.fsync(handle.fileno())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in the lines of a file, in order; an empty list if there is no file. A line
    that a killed writer left incomplete, or that is no JSON object, is left out."""
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


def stamp_of(path: Path) -> tuple[int, int]:
    """A file's size in bytes and its modification time: enough to notice that it was replaced."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_of(content: Mapping[str, Any]) -> str:
    """The hexadecimal SHA-256 of a JSON content; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def committed_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` as a whole, or not at all.

    Order: files, fsync, marker, fsync, one rename; so `path` is never seen incomplete. Raises
    `BadInput` when another process has committed different files there in the meantime: those
    stay, and ours are dropped. Also raises it when `path` holds files that we did not write: they
    are never removed.
    """
    _refuse_foreign(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with naming(path):
            yield temporary
            is_ours = publish(temporary, path)
        if not is_ours:
            raise BadInput(
                f"{path}: exists already with other content; choose another, or remove it first"
            )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, path: Path) -> bool:
    """Rename a finished temporary directory to `path` and commit it. Returns whether `path` now
    holds these files; if not, another process has committed different ones, which stay."""
    for file in sorted(temporary.rglob("*")):
        sync(file)
    write_atomic(temporary / COMMIT_MARKER, "")
    if not is_committed(path):
        _refuse_foreign(path)
        try:
            os.rename(temporary, path)
        except OSError:
            if not is_committed(path):  # otherwise another process was faster
                raise
        else:
            sync(path.parent)
            return True
    return all(
        _has_content_of(file, path / file.relative_to(temporary))
        for file in temporary.rglob("*")
        if file.is_file()
    )


def _has_content_of(one: Path, other: Path) -> bool:
    """Whether two files have equal contents. Two hard links to one file are not read."""
    if not other.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    return _is_same(one, other) or sha256_of(one) == sha256_of(other)


def _refuse_foreign(path: Path) -> None:
    if is_committed(path) or not path.exists():
        return
    if not path.is_dir() or any(path.iterdir()):
        raise BadInput(f"{path}: exists already, and is not ours to replace; choose another")


def is_committed(path: Path) -> bool:
    """Whether a directory was written completely, which its marker file says."""
    return (path / COMMIT_MARKER).is_file()


def remove_committed(path: Path) -> None:
    """Remove a committed directory, if it exists. It is renamed first, so that a half-removed
    directory never looks complete."""
    if is_committed(path):
        doomed = temporary_of(path)
        os.rename(path, doomed)
        shutil.rmtree(doomed)


def remove_temporaries(parent: Path, *names: str, old_s: float | None = None) -> None:
    """Remove the temporary files that killed writers of these names (none given: of any name) left
    in `parent`. Give `old_s` if others may be writing there now: then only what `is_abandoned` is
    removed."""
    for name in names or ("*",):
        for path in parent.glob(f".{name}.*tmp"):
            if old_s is None or is_abandoned(path, old_s=old_s):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def newest_committed(parent: Path, prefix: str) -> Path | None:
    """The committed directory `prefix<number>` with the largest number, found by listing `parent`.

    There is no pointer file to the newest one: a process may die after a save is complete and
    before it writes the pointer.
    """
    numbered = [
        (int(path.name.removeprefix(prefix)), path)
        for path in parent.glob(f"{prefix}*")
        if path.name.removeprefix(prefix).isdigit() and is_committed(path)
    ]
    return max(numbered)[1] if numbered else None


def temporary_of(path: Path) -> Path:
    """The path, beside `path`, where its content is written until it is complete."""
    # The name holds host, process and thread: two writers must never share a temporary file.
    writer = f"{socket.gethostname()}.{os.getpid()}-{threading.get_native_id()}"
    return path.with_name(f".{path.name}.{writer}.tmp")


def is_abandoned(temporary: Path, *, old_s: float) -> bool:
    """Whether nobody writes a `temporary_of` any more: its process on this host is gone, or another
    host made it and it was not written to for `old_s` seconds."""
    rest, _, process = temporary.name.removesuffix(".tmp").rpartition(".")
    if rest.endswith(f".{socket.gethostname()}"):
        return not Path(f"/proc/{process.partition('-')[0]}").exists()
    try:
        return time.time() - temporary.stat().st_mtime > old_s
    except FileNotFoundError:
        return False


def sync(path: Path) -> None:
    """Sync a file's content, or a directory's entries, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Inputs by address (s3://, gs://, https://, ...): the files there, and copies of them here.

A file is copied whole before its rows are read: workers begin at different rows of it, some formats
are read twice, and its digest is a part of what the shards are made from. fsspec opens the address,
with the package that it names for it (s3fs, gcsfs, ...), or else pyarrow, which knows s3, gs and
hdfs by itself; credentials are found as these libraries find them.

Knows file systems elsewhere. Refuses to know which worker copies a file, and what is in it.
"""

import dataclasses
import functools
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.base.console import say
from toolkit.base.errors import BadInput, RunFailed
from toolkit.base.files import naming, read_json, sync, temporary_of, write_json
from toolkit.text.folders import told
from toolkit.text.sources import is_known, kind_of, unknown

PIECE_BYTES = 2**22
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://")
_GLOB = re.compile(r"[*?\[]")


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file elsewhere: the scheme of its address, the rest of it, and what is known of its
    content. A file with another `stamp` has changed, where its file system says so. `below` is the
    folder that was named, if the file was found in one."""

    filesystem: Any
    scheme: str
    path: str
    size: int | None
    stamp: str
    below: str | None = None

    def root(self, folder: Path) -> Path | None:
        """Where the copy of the folder that was named is; None if the file itself was."""
        return None if self.below is None else self._place(self.below, folder)

    def place(self, folder: Path) -> Path:
        """Where its copy is below a folder: neighbours stay neighbours, with the same names."""
        return self._place(self.path, folder)

    def _place(self, path: str, folder: Path) -> Path:
        path = _ADDRESS.sub("", path)
        if self.scheme in ("http", "https"):
            path = path.partition("?")[0]
        parts = PurePosixPath(path.lstrip("/")).parts
        return folder.joinpath(self.scheme, *(part for part in parts if part != ".."))

    def is_copied(self, folder: Path) -> bool:
        """Whether the copy in a folder is whole and still that of this file."""
        place = self.place(folder)
        try:
            about = read_json(_about(place))
            is_same = about == {**self._facts(), "bytes": about["bytes"]}
            return is_same and bool(place.stat().st_size == about["bytes"])
        except (BadInput, OSError, TypeError, KeyError):
            return False

    def copy(self, folder: Path) -> None:
        """Copy the file into a folder, all or nothing. Raises `RunFailed` when reading fails."""
        place = self.place(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_of(place)
        try:
            with naming(place), temporary.open("wb") as handle:
                size = self._write(handle)
                handle.flush()
                os.fsync(handle.fileno())
            if self.size is not None and size != self.size:
                raise RunFailed(f"{self.path}: gave {size:,} bytes of {self.size:,}; start again")
            os.replace(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)
        sync(place.parent)
        write_json(_about(place), {**self._facts(), "bytes": size})

    def _facts(self) -> dict[str, Any]:
        return {"stamp": self.stamp, "size": self.size}

    def _write(self, handle: Any) -> int:
        size = 0
        for piece in self._pieces():
            handle.write(piece)
            size += len(piece)
        return size

    def _pieces(self) -> Any:
        """The content, in pieces. What is wrong elsewhere must not look like a full disk here."""
        try:
            with self.filesystem.open(self.path, "rb") as source:
                while piece := source.read(PIECE_BYTES):
                    yield piece
        except Exception as error:  # each file system has its own errors
            raise RunFailed(f"{self.path}: {_said(error)}; the same command goes on") from error


def is_address(given: str) -> bool:
    """Whether this is an address, and not a path."""
    return _ADDRESS.match(given) is not None


def local_path(address: str) -> Path | None:
    """The path that a file:// address names; None for other addresses."""
    scheme, _, path = address.partition("://")
    return Path(path) if scheme.lower() in ("file", "local") else None


def remote_files(address: str, *, whole_files: bool = False) -> list[RemoteFile]:
    """The files at an address, in order: one, those that match a pattern (*, ?), or in a folder
    those whose kind is known; a line says what else is there. Raises `BadInput` if there are none,
    nothing here opens it, or the kind of a file that was named is unknown."""
    filesystem, path = _opened(address)
    below = None
    try:
        if _GLOB.search(path) and not filesystem.exists(path):
            found = sorted(filesystem.glob(path))
        elif filesystem.isfile(path):
            found = [path]
        else:
            found = sorted(filesystem.find(path))
            below, base = path, Path(path)
            every = [Path(one) for one in found]
            known = {one for one in every if is_known(one, below=base, whole_files=whole_files)}
            if passed := [unknown(one) for one in every if one not in known]:
                say(f"{_shown(address)}: not read: {told(passed, below=base)}")
            found = [one for one in found if Path(one) in known]
        scheme = address.partition("://")[0].lower()
        files = [_known(filesystem, scheme=scheme, path=one, below=below) for one in found]
    except Exception as error:  # each file system has its own errors
        raise BadInput(f"{_shown(address)}: cannot be read ({_said(error)})") from error
    if not files:
        raise BadInput(f"{_shown(address)}: no such file, and no folder with files of a known kind")
    for file in files:  # before hours of copying
        kind_of(file.place(Path()), whole_files=whole_files)
    return files


def _known(filesystem: Any, *, scheme: str, path: str, below: str | None) -> RemoteFile:
    size = filesystem.info(path).get("size")
    stamp = str(filesystem.ukey(path))
    size = None if size is None else int(size)
    return RemoteFile(filesystem, scheme, path, size, stamp, below)


@functools.cache
def _opened(address: str) -> tuple[Any, str]:
    """The file system of an address, as fsspec gives it, and the path there."""
    import fsspec
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem

    shown = _shown(address)
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
    except ImportError as missing:
        try:
            arrow, path = FileSystem.from_uri(address)
        except (ValueError, OSError) as error:
            raise BadInput(f"{shown}: {_said(missing)}, or: {_said(error)}") from error
        return ArrowFSWrapper(arrow), path
    except Exception as error:  # an unknown scheme, wrong credentials, ...
        raise BadInput(f"{shown}: cannot be opened ({_said(error)})") from error
    return filesystem, path


def _shown(address: str) -> str:
    """An address, or a text with one in it, without the keys that may stand there."""
    return re.sub(r"//[^/@]*@", "//", address)


def _about(place: Path) -> Path:
    """The file beside a copy that says of what it is one."""
    return place.with_name(f".{place.name}.json")


def _said(error: BaseException) -> str:
    return _shown(" ".join(str(error).split())[:200]) or type(error).__name__

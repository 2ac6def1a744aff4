"""Leases in a directory on a shared file system: who works on what, without a server.

Knows files, processes of this host and a monotonic clock. Refuses to know what is worked on.

    DIR/<name>.<generation>     held by whoever made the highest generation

A lease is made with O_EXCL, which NFS keeps too: of many one succeeds. Its owner counts in it, by a
thread. A watcher that has seen no change for `lease_s` of its OWN clock makes the next generation:
clocks of two nodes need not agree, and of two watchers one succeeds. An owner that was only slow
sees the higher generation and knows that it has lost. Where the owner was a process of this host
that is gone, nobody waits. That two work on one thing is rare, not impossible: the work must be
such that doing it twice does no harm.
"""

import dataclasses
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from toolkit.base.files import naming

BEATS = 6  # in the life of a lease
_COUNTER_DIGITS = 20


@dataclasses.dataclass
class _Held:
    generation: int
    descriptor: int
    beats: int = 0


class Leases:
    """The leases of this process; enter it to keep them alive, leave it to give back all.

    Thread-safe. `now` is a monotonic clock in seconds.
    """

    def __init__(
        self, directory: Path, *, lease_s: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory, self._lease_s, self._now = directory, lease_s, now
        self._held: dict[str, _Held] = {}
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="leases", daemon=True)

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
        for name in list(self._held):
            self.give_back(name)
        try:
            self._directory.rmdir()
        except OSError:  # others are at work
            return

    def taken(self) -> dict[str, int]:
        """The names that are leased, by anybody, and the generation of each."""
        found: dict[str, int] = {}
        try:
            entries = os.listdir(self._directory)
        except FileNotFoundError:  # the last worker to leave takes the directory along
            return found
        for entry in entries:
            name, _, generation = entry.rpartition(".")
            if name and generation.isdecimal():
                found[name] = max(found.get(name, 0), int(generation))
        return found

    def take(self, name: str, *, generation: int | None = None) -> bool:
        """Try to become the owner of `name`, which is free or was at `generation` (of `taken`)."""
        if name in self._held:
            return False
        if generation is not None and not self._is_stale(name, generation=generation):
            return False
        following = 0 if generation is None else generation + 1
        path = self._path(name, following)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        except FileNotFoundError:
            self._directory.mkdir(parents=True, exist_ok=True)
            return False
        content = f"{0:0{_COUNTER_DIGITS}d} {json.dumps(this_process())}\n".encode()
        try:
            with naming(path):
                if os.write(descriptor, content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)  # NFS shows it to others then
        except OSError:  # a full disk: others would wait for an owner that it does not name
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        self._seen.pop(name, None)
        with self._lock:
            self._held[name] = _Held(following, descriptor)
        return True

    def holds(self, name: str) -> bool:
        """Whether `name` is still ours: nobody has taken it over."""
        held = self._held.get(name)
        if held is None or self._path(name, held.generation + 1).exists():
            return False
        try:
            return os.fstat(held.descriptor).st_nlink > 0
        except OSError:  # ESTALE: another node has removed it
            return False

    def give_back(self, name: str) -> None:
        """Be its owner no more, if we were."""
        ours = self.holds(name)
        with self._lock:
            held = self._held.pop(name, None)
        if held is None:
            return
        os.close(held.descriptor)
        # The highest first: who dies between two of them leaves a stale lease, not two owners.
        for generation in range(held.generation, -1, -1) if ours else ():
            self._path(name, generation).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all leases but ours, when all work is done: what killed owners have left, and what
        others, if there are any, will see that they have lost."""
        with self._lock:
            mine = {f"{name}.{held.generation}" for name, held in self._held.items()}
        for path in self._directory.iterdir():
            if path.name not in mine:
                path.unlink(missing_ok=True)

    def _path(self, name: str, generation: int) -> Path:
        return self._directory / f"{name}.{generation}"

    def _is_stale(self, name: str, *, generation: int) -> bool:
        try:
            content = self._path(name, generation).read_bytes()
        except OSError:  # given back, or not readable at the moment: look again
            self._seen.pop(name, None)
            return False
        if _is_gone(content):
            return True
        state = b"%d " % generation + content
        before, since = self._seen.get(name, (b"", 0.0))
        if state != before:
            self._seen[name] = (state, self._now())
            return False
        return self._now() - since >= self._lease_s

    def _beat_on(self) -> None:
        while not self._end.wait(self._lease_s / BEATS):
            with self._lock:
                for held in self._held.values():
                    held.beats += 1
                    try:
                        counter = f"{held.beats:0{_COUNTER_DIGITS}d}".encode()
                        os.pwrite(held.descriptor, counter, 0)
                        os.fsync(held.descriptor)
                    except OSError:  # then it grows stale, and another does the work
                        continue


def beats_of_hosts(directory: Path, *, now: float) -> dict[str, float]:
    """For how many seconds, at `now` in seconds since 1970, no process of a host has beaten; by the
    file system's clock, so for people only."""
    found: dict[str, float] = {}
    for path in directory.iterdir() if directory.is_dir() else ():
        try:
            host = json.loads(path.read_bytes()[_COUNTER_DIGITS:])["host"]
            silent_s = max(0.0, now - path.stat().st_mtime)
        except (OSError, ValueError, TypeError, KeyError):  # given back, or made this moment
            continue
        found[host] = min(silent_s, found.get(host, silent_s))
    return found


def this_process() -> dict[str, str | int]:
    """What tells this process from every other, here and elsewhere, then and now."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pid_namespace": os.stat("/proc/self/ns/pid").st_ino,
        "pid": pid,
        "started": _started(pid),
    }


def _is_gone(content: bytes) -> bool:
    """Whether a lease's owner was a process that we would see, and do not."""
    ours = this_process()
    try:
        owner = json.loads(content[_COUNTER_DIGITS:])
        if any(owner[key] != ours[key] for key in ("boot", "pid_namespace")):
            return False
        return _started(int(owner["pid"])) != int(owner["started"])
    except (ValueError, TypeError, KeyError):  # made this moment, or its maker died at it
        return False


def _started(pid: int) -> int:
    """When a process began, in the kernel's ticks; 0 if there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])

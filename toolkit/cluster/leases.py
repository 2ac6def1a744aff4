"""Leases in a directory on a shared file system: which worker does what, without a server.

Knows files, processes of this host and a monotonic clock. Refuses to know what is worked on.

    DIR/<name>.<generation>     the creator of the highest generation owns the lease

A lease file is created with O_EXCL, which works on NFS too: if several processes try, one succeeds.
A thread of the owner writes a growing counter into the file. Another worker that has seen no change
for `lease_s` seconds of its OWN clock creates the next generation. So the clocks of two nodes need
not agree, and if two workers try at once, one succeeds. An owner that was only slow sees the higher
generation and knows that it has lost the lease. If the owner was a process of this host that is
gone, the others do not wait. Two workers on one item are rare but possible: the work must do no
harm when it is done twice.
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

BEATS = 6  # updates of the counter within `lease_s`, so that a few late ones do no harm
_COUNTER_DIGITS = 20


@dataclasses.dataclass
class _Held:
    generation: int
    descriptor: int
    beats: int = 0


class Leases:
    """The leases of this process. While entered, a thread keeps them alive; leaving gives them all
    back. Thread-safe. `now` is a monotonic clock in seconds.
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
        except OSError:  # not empty: other workers hold leases
            return

    def taken(self) -> dict[str, int]:
        """The names that any worker has leased, and the highest generation of each."""
        generations: dict[str, int] = {}
        try:
            entries = os.listdir(self._directory)
        except FileNotFoundError:  # the last worker to leave takes the directory along
            return generations
        for entry in entries:
            name, _, generation = entry.rpartition(".")
            if name and generation.isdecimal():
                generations[name] = max(generations.get(name, 0), int(generation))
        return generations

    def take(self, name: str, *, generation: int | None = None) -> bool:
        """Try to become the owner of `name`; returns whether we are. `generation` is the one that
        `taken` gave for it, None if it was free."""
        if name in self._held:
            return False
        if generation is not None and not self._is_stale(name, generation=generation):
            return False
        # Take over by creating the NEXT generation, and never by deleting a stale file: between
        # our look and our deletion another worker may have put a fresh lease in its place.
        following = 0 if generation is None else generation + 1
        path = self._path(name, following)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        except FileNotFoundError:  # the last worker to leave removed the directory: try again later
            self._directory.mkdir(parents=True, exist_ok=True)
            return False
        content = f"{0:0{_COUNTER_DIGITS}d} {json.dumps(this_process())}\n".encode()
        try:
            with naming(path):
                if os.write(descriptor, content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)  # only then does NFS show the content to other nodes
        except OSError:  # a full disk: others would wait for an owner that the file does not name
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        self._seen.pop(name, None)
        with self._lock:
            self._held[name] = _Held(following, descriptor)
        return True

    def holds(self, name: str) -> bool:
        """Whether `name` is still ours, so that no other worker has taken it over."""
        held = self._held.get(name)
        if held is None or self._path(name, held.generation + 1).exists():
            return False
        try:
            # No links: another worker took it over, finished, and removed all generations.
            return os.fstat(held.descriptor).st_nlink > 0
        except OSError:  # ESTALE, which is how NFS says that another node removed the file
            return False

    def give_back(self, name: str) -> None:
        """Give up `name` so that another worker can take it; does nothing if it is not ours."""
        ours = self.holds(name)
        with self._lock:
            held = self._held.pop(name, None)
        if held is None:
            return
        os.close(held.descriptor)
        # Remove the highest generation first: a process that dies midway then leaves a lower one
        # behind, which grows stale. In the other order another worker could create generation 0
        # below the one that is left, and there would be two owners.
        for generation in range(held.generation, -1, -1) if ours else ():
            self._path(name, generation).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all leases but ours. For the end, when all work is done: it removes what killed
        owners left, and an owner that is still running sees that it has lost its lease."""
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
        except OSError:  # given back, or unreadable at the moment: start over at the next look
            self._seen.pop(name, None)
            return False
        if _is_gone(content):
            return True
        # Measure how long WE have seen the same content. The file's own time would compare the
        # clock of the file server or of the owner's node with ours.
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
                    except OSError:  # the lease grows stale, and another worker does the work
                        continue


def beats_of_hosts(directory: Path, *, now: float) -> dict[str, float]:
    """For each host, how many seconds before `now` (seconds since 1970) any of its processes last
    updated a lease. It relies on the clock of the file system, so it is for people only."""
    silences: dict[str, float] = {}
    for path in directory.iterdir() if directory.is_dir() else ():
        try:
            host = json.loads(path.read_bytes()[_COUNTER_DIGITS:])["host"]
            silent_s = max(0.0, now - path.stat().st_mtime)
        except (OSError, ValueError, TypeError, KeyError):  # given back, or being written now
            continue
        silences[host] = min(silent_s, silences.get(host, silent_s))
    return silences


def this_process() -> dict[str, str | int]:
    """What identifies this process among all processes of all hosts at all times: process numbers
    repeat on other hosts, after a reboot, in containers and over time."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pid_namespace": os.stat("/proc/self/ns/pid").st_ino,
        "pid": pid,
        "started": _started(pid),
    }


def _is_gone(content: bytes) -> bool:
    """Whether the owner of a lease is known to be dead: a process that this host would show, and
    does not."""
    ours = this_process()
    try:
        owner = json.loads(content[_COUNTER_DIGITS:])
        # Of another boot, host or container we cannot see whether a process number is alive.
        if any(owner[key] != ours[key] for key in ("boot", "pid_namespace")):
            return False
        return _started(int(owner["pid"])) != int(owner["started"])
    except (ValueError, TypeError, KeyError):  # being written now, or its writer died at that
        return False


def _started(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 if there is none or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])

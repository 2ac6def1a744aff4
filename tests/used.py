"""Processor time of processes and their children, told through files; see tests/times.py."""

import os
import resource
import struct
from pathlib import Path

FOLDER = "TOOLKIT_TEST_USED"  # an environment variable; without it nothing is told


def tell() -> None:
    """Write what this process and the children that it waited for have used, for `used_s`."""
    if folder := os.environ.get(FOLDER):
        path = Path(folder, f"{os.getpid()}")
        with open(path, "r+b" if path.exists() else "wb", buffering=0) as file:
            file.write(struct.pack("<d", _own_s()))


def used_s() -> float:
    """Seconds of this process, its children, and those who told."""
    told = [path.read_bytes() for path in Path(os.environ[FOLDER]).iterdir()]
    return _own_s() + sum(struct.unpack("<d", content)[0] for content in told if len(content) == 8)


def _own_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)

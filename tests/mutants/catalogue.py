"""The faults in the lists beside this file.

    - name: pooling-counts-padding      unique; what the fault is, in a few words
      file: toolkit/model/pooling.py
      old: text that occurs exactly once in it
      new: what stands there instead
      tests: [tests/model/test_losses.py]   what must fail: files, or file::test

Tests are named by whole files where these are fast, so that a test may be renamed.
"""

import ast
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
LISTS = Path(__file__).parent
KEYS = {"name", "file", "old", "new", "tests"}


@dataclasses.dataclass(frozen=True)
class Fault:
    """A change of a source file, and the tests of which at least one must then fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def problem(self, root: Path) -> str:
        """Why the fault cannot be planted in the source at `root`; empty if it can."""
        path = root / self.file
        if not path.is_file():
            return f"{self.file} is not there"
        count = path.read_text(encoding="utf-8").count(self.old)
        if count != 1:
            return f"its old text occurs {count} times in {self.file}"
        try:
            ast.parse(self.planted(root))
        except SyntaxError as error:
            return f"{self.file} would be no Python ({error})"
        return ""

    def planted(self, root: Path) -> str:
        """The source file with the fault in it."""
        return (root / self.file).read_text(encoding="utf-8").replace(self.old, self.new)

    def missing_tests(self, root: Path) -> list[str]:
        """The tests of the fault that do not exist, by the names of files and functions."""
        return [test for test in self.tests if not _is_there(test, root=root)]

    def state(self, root: Path) -> str:
        """A digest of the fault, of all source, and of its tests with what they rely on: while it
        is the same, so is the result."""
        files = [*root.glob("toolkit/**/*.py"), *root.glob("data_scripts/*.py")]
        files += [root / "tests" / "conftest.py", *root.glob("tests/forking/*.py")]
        files += [root / test.partition("::")[0] for test in self.tests]
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode())
        for path in sorted(set(files)):
            digest.update(path.read_bytes() if path.is_file() else b"")
        return digest.hexdigest()[:16]


def all_faults() -> list[Fault]:
    """The faults of all lists, in order. Raises `ValueError` for an entry that is not a fault, or
    has the name of another."""
    faults: dict[str, Fault] = {}
    for fault in _read():
        if fault.name in faults:
            raise ValueError(f"{fault.name}: two faults have this name")
        faults[fault.name] = fault
    return list(faults.values())


def chosen(faults: list[Fault], *, only: list[str]) -> list[Fault]:
    """The faults whose name, source file, test or list is in `only` (all if `only` is empty).
    Raises `ValueError` for a word that chooses none."""
    if not only:
        return faults
    by_list = {path.stem: {fault.name for fault in _of_list(path)} for path in _lists()}

    def is_meant(fault: Fault, word: str) -> bool:
        files = {test.partition("::")[0] for test in fault.tests}
        named = word in {fault.name, fault.file, *fault.tests, *files}
        return named or fault.name in by_list.get(word, ())

    for word in only:
        if not any(is_meant(fault, word) for fault in faults):
            raise ValueError(f"{word}: is no name, file, test or list of a fault")
    return [fault for fault in faults if any(is_meant(fault, word) for word in only)]


def _lists() -> list[Path]:
    return sorted(LISTS.glob("*.yaml"))


def _read() -> Iterator[Fault]:
    for path in _lists():
        yield from _of_list(path)


def _of_list(path: Path) -> list[Fault]:
    entries: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for entry in entries:
        if set(entry) != KEYS or not entry["tests"] or entry["old"] == entry["new"]:
            raise ValueError(f"{path.name}: {entry.get('name')}: has not the keys of a fault")
    return [Fault(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def _is_there(test: str, *, root: Path) -> bool:
    file, _, function = test.partition("::")
    path = root / file
    if not path.is_file():
        return False
    if not function:
        return True
    names = [
        node.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    return function.partition("[")[0] in names

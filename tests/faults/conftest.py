"""The shim and the process that trains under it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.faults.killer import Trainer, build, trainer


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled shim."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    need(compiler is not None, "no C compiler (cc) for the shim that kills")
    assert compiler
    return build(tmp_path_factory.mktemp("shim"), compiler=compiler)


@pytest.fixture(scope="module")
def runs(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    """Whoever trains; its imports are paid once."""
    with trainer(library, folder=tmp_path_factory.mktemp("runs")) as found:
        yield found

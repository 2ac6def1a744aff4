"""Fixtures that all tests share."""

import contextlib
import gc
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests import times
from tests.benchmarks.harness import REAL_DATA
from tests.forking.start import check_servers, environ_of_starts, forked_python
from toolkit.base import console

ROOT = Path(__file__).parents[1]
FIRST_PORT, NUM_PORTS = 19100, 900
# The two workers of xdist begin half a circle apart, other runs of the tests somewhere else.
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_first = os.getppid() * 31 + _worker * NUM_PORTS // 2
_ports = (FIRST_PORT + (_first + n) % NUM_PORTS for n in itertools.count())
QUICKSTART = ROOT / "toolkit" / "quickstart"
# Several ranks share two cores here; torch's threads would fight for them.
os.environ["OMP_NUM_THREADS"] = "1"  # whatever the shell has: forks are safe with one only
os.environ["HF_HUB_OFFLINE"] = "1"
# Without a GPU, liger's kernels are interpreted; triton asks when it is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
# A busy machine is no failure of a property.
hypothesis.settings.register_profile("toolkit", deadline=None)
hypothesis.settings.load_profile("toolkit")


def pytest_configure(config: pytest.Config) -> None:
    times.configure(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    times.order(items)


def need(condition: bool, reason: str) -> None:
    """Skip with the reason, or fail where everything must run (TOOLKIT_REQUIRE_ALL=1)."""
    if condition:
        return
    if os.environ.get("TOOLKIT_REQUIRE_ALL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(autouse=True, scope="session")
def _slow_machines_say_no_more() -> None:
    """What goes on for long says so on stderr (`console.at_work`): not on a machine that is busy,
    where tests look at every line. Those of the console give times of their own."""
    console.FIRST_S = 3600.0


@pytest.fixture(autouse=True, scope="session")
def _all_is_collected_at_the_end() -> Iterator[None]:
    """Libraries in C++ list what is left when the interpreter ends."""
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def _forks_were_forks() -> Iterator[None]:
    yield
    check_servers()


@pytest.fixture(autouse=True, scope="module")
def _collections_pass_over_what_stays() -> None:
    """DeepSpeed collects garbage for every engine: half a second through all imported modules."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets beside the checkout (TOOLKIT_REAL_DATA names another)."""
    need(REAL_DATA.is_dir(), f"no real data in {REAL_DATA}; name it with TOOLKIT_REAL_DATA")
    return REAL_DATA


@pytest.fixture(scope="session")
def stories_model(real_data: Path) -> Path:
    """stories260K, a real causal model; real models stand beside the real data."""
    folder = real_data.parent / "models" / "stories260K"
    need(folder.is_dir(), f"no real model in {folder}")
    return folder


@pytest.fixture(scope="session")
def shipped_model() -> Path:
    """The shipped tiny base model, for tests of what it has learnt or of its size."""
    return QUICKSTART / "tiny-mistral"


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """Two layers of the shipped tiny base model (tests/two_layers.py)."""
    from tests.two_layers import two_layers

    return two_layers()


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the shipped encyclopedia."""
    out = tmp_path_factory.mktemp("data") / "shards"
    run(
        [sys.executable, "data_scripts/shard_wikipedia.py", "--input"]
        + [str(QUICKSTART / "encyclopedia.xml.bz2"), "--output", str(out)]
    )
    return out


def run(
    command: list[str],
    *,
    code: int = 0,
    cwd: Path = ROOT,
    timeout_s: float = 600,
    real: bool = False,
) -> str:
    """Run a command and return what it printed; fail unless it ends with `code`.

    A command of this interpreter is forked from a process that has imported the libraries
    (tests/forking), unless it has to be a `real` start.
    """
    forked = command[0] == sys.executable and not real
    done = subprocess.run(
        [forked_python(), *command[1:]] if forked else command,
        cwd=cwd,
        env=environ_of_starts(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout[-6000:]}"
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(
    capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int], *arguments: object
) -> str:
    """The one line with which a command refuses its arguments (exit code 2)."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    return captured.err


def free_port() -> int:
    """A port that nobody listens on, and that the kernel gives to no outgoing connection before it
    is used: below 32768, between those of the test clusters and those of toolkit.cluster.topology.
    """
    for port in itertools.islice(_ports, NUM_PORTS):
        with contextlib.suppress(OSError):
            socket.create_server(("", port)).close()
            return port
    raise AssertionError(f"no free port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1}")


def torchrun(ranks: int, *, python: str = sys.executable) -> list[str]:
    """The command that runs what follows it on so many ranks of this machine."""
    command = [python, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return [*command, "--master-port", str(free_port())]


@pytest.fixture
def door() -> Callable[..., str]:
    """Run `python -m toolkit.<name> ...` alone, or with ranks=W under torchrun."""

    def call(name: str, *arguments: object, code: int = 0, ranks: int = 1) -> str:
        python = torchrun(ranks) if ranks > 1 else [sys.executable]
        return run([*python, "-m", f"toolkit.{name}", *map(str, arguments)], code=code)

    return call

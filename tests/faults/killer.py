"""Training runs that are killed before a chosen file-system call, or get into other trouble.

Knows the shim `killer.c` and processes. Refuses to know what a run leaves behind.

Run as a program with the shim preloaded, it imports everything once. A JSON line on standard input,
a `Run` without its defaults, forks the ranks of a run. The one that is watched is killed before
its `call`-th call under the run directory, and the others after it, as a scheduler does; or it gets
into `trouble` (tests/faults/troubles.py), and the others are left to themselves. The answer is the
wait status of each rank.
"""

import contextlib
import ctypes
import dataclasses
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from tests.conftest import ROOT, free_port
from tests.forking.server import preload

SOURCE = Path(__file__).with_name("killer.c")
END_TIMEOUT_S = 30.0


@dataclasses.dataclass(frozen=True)
class Call:
    """A file-system call under the watched directory: its number from 1, its name, its path."""

    number: int
    name: str
    path: Path


def build(folder: Path, *, compiler: str) -> Path:
    """The shim, compiled into `folder`."""
    library = folder / "killer.so"
    flags = ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-O1"]
    subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run: which of its `ranks` is `watched`, and before which call it is killed (0: it
    is only counted; None: no calls are watched)."""

    arguments: list[str]
    run_dir: str
    call: int | None = None
    ranks: int = 1
    watched: int = 0
    trouble: str = ""


class Trainer:
    """Trains in children that share what was imported."""

    def __init__(self, process: "subprocess.Popen[str]", *, folder: Path) -> None:
        self._process, self._folder = process, folder

    def train(self, run: Run) -> int:
        """The exit code of the watched rank if it failed, else of another that did; -9 when it was
        killed."""
        codes = self.codes(run)
        return codes[run.watched] or next((code for code in codes if code), 0)

    def codes(self, run: Run) -> list[int]:
        """The exit code of each rank of a run."""
        asked = {**dataclasses.asdict(run), "port": free_port(), "folder": str(self._folder)}
        return [os.waitstatus_to_exitcode(status) for status in ask(self._process, asked)]

    def calls(self) -> list[Call]:
        """The calls of the last run that counted; the one that it died before is the last."""
        lines = [line.split(" ", 2) for line in (self._folder / "trace").read_text().splitlines()]
        return [Call(int(number), name, Path(path)) for number, name, path in lines]

    def time_of_trouble(self) -> float:
        """When the last run got into trouble, in seconds of the monotonic clock."""
        return float((self._folder / "trouble").read_text())

    def printed(self) -> str:
        """What the last run printed."""
        logs = sorted(self._folder.glob("log-*"))
        return "".join(path.read_text(errors="replace") for path in logs)


@contextlib.contextmanager
def trainer(library: Path, *, folder: Path) -> Iterator[Trainer]:
    """A `Trainer` whose traces and logs go to `folder`; its process ends with the context."""
    with served("tests.faults.killer", library=library) as process:
        yield Trainer(process, folder=folder)


@contextlib.contextmanager
def served(module: str, *, library: Path | None) -> Iterator["subprocess.Popen[str]"]:
    """A module that runs as a program, with the shim if there is one, and answers each line of JSON
    by a line (`ask`). It ends with the context; where that takes long or something failed, it is
    killed, and all that it has started."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environ |= {"HF_HUB_OFFLINE": "1"} | ({"LD_PRELOAD": str(library)} if library else {})
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
            process.communicate(timeout=END_TIMEOUT_S)  # the end of its standard input is its end
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def ask(process: "subprocess.Popen[str]", asked: Mapping[str, Any]) -> Any:
    """What a `served` program answers."""
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(asked) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def _serve() -> None:
    # Answers alone go to the pipe: whatever is printed while importing must not be taken for one.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    preload()
    for line in sys.stdin:
        asked = json.loads(line)
        folder = Path(asked["folder"])
        for path in [*folder.glob("log-*"), folder / "modules"]:
            path.unlink(missing_ok=True)
        children = [_fork_rank(rank, asked=asked) for rank in range(asked["ranks"])]
        left, statuses = set(children), dict[int, int]()
        while left:
            child, statuses[child] = os.wait()
            left.remove(child)
            if statuses[child] and not asked["trouble"]:
                for other in left:
                    os.kill(other, signal.SIGKILL)
        if (folder / "modules").exists():
            import_all((folder / "modules").read_text().split())
        print(json.dumps([statuses[child] for child in children]), file=answers, flush=True)


def _fork_rank(rank: int, *, asked: dict[str, Any]) -> int:
    child = os.fork()
    if not child:
        if asked["ranks"] > 1:
            for name, value in (("RANK", rank), ("WORLD_SIZE", asked["ranks"])):
                os.environ |= {name: str(value), f"LOCAL_{name}": str(value)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(asked["port"])}
        _be_the_rank(rank, asked=asked)
    return child


def import_all(names: list[str]) -> None:
    """What a child has imported beyond that, so that its successors need not."""
    for name in names:
        if name not in sys.modules:
            with contextlib.suppress(Exception):  # not every module comes from a file
                importlib.import_module(name)
    # jemalloc's, of pyarrow, knows how to be forked; any other would be missing in the children.
    tasks = [path for path in Path("/proc/self/task").iterdir() if path.name != str(os.getpid())]
    others = {(path / "comm").read_text().strip() for path in tasks} - {"jemalloc_bg_thd"}
    assert not others, f"threads that a child would lack: {others}"
    gc.freeze()  # DeepSpeed collects garbage for every engine


def _be_the_rank(rank: int, *, asked: dict[str, Any]) -> NoReturn:
    """Train. Tells in the file `modules` what was imported."""
    code, folder = 1, Path(asked["folder"])
    try:
        log = os.open(folder / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(log, number)
        import torch

        from toolkit import train

        torch.set_num_threads(1)
        if asked["call"] is not None and asked["watched"] == rank:
            shim = ctypes.CDLL(None)
            directory, trace = os.fsencode(asked["run_dir"]), os.fsencode(folder / "trace")
            shim.killer_arm(directory, ctypes.c_long(asked["call"]), trace)
        if asked["trouble"] and asked["watched"] == rank:
            from tests.faults import troubles

            troubles.expect(asked["trouble"], run_dir=Path(asked["run_dir"]), folder=folder)
        code = train.main([*asked["arguments"], f"run_dir={asked['run_dir']}"])
        if rank == 0 and not asked["trouble"]:
            (folder / "modules").write_text("\n".join(list(sys.modules)))
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            code = 128 + signal.SIGINT  # as a shell has it
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()

"""Commands under an audit hook that lists every class which is unpickled, in all their processes.

Not in the watchdog's monitors, which run without what is installed (-I -S): they read JSON.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.conftest import ROOT
from tests.forking.start import forked_python

HOOK = Path(__file__).with_name("auditing")
# The only places that unpickle, by the file of whose code does it. The README of
# toolkit/training names the same.
MESSAGES, MPI, SUBMITIT = "messages of one command's processes", "MPI messages", "submitit's files"
EXCEPTIONS = {
    r"/multiprocessing/(connection|queues|spawn|pool)\.py": MESSAGES,
    r"/mpi4py/|/toolkit/cluster/(mpi|crew)\.py|mpi4py\.MPI": MPI,
    r"/submitit/core/utils\.py": SUBMITIT,
}


def environ_with_hook(file: Path) -> dict[str, str]:
    """What has Python, and all that it starts, write to `file`."""
    return {"PYTHONPATH": f"{HOOK}:{ROOT}", "AUDIT_FILE": str(file)}


def unpickled(file: Path) -> list[str]:
    """What was unpickled: the name of the exception, or the class with the file of the code."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else []:
        code = line.partition("\t")[2]
        names = [name for pattern, name in EXCEPTIONS.items() if re.search(pattern, code)]
        found.append(names[0] if names else line)
    return found


def audited(
    command: Sequence[object],
    *,
    file: Path,
    is_real: bool = True,
    environ: Mapping[str, str] | None = None,
) -> tuple[str, set[str]]:
    """Run a command that must succeed; what it printed, and what was unpickled meanwhile.

    Its environment is ours, unless `environ` is given. Without `is_real` its Python processes are
    forks, in which nothing of an import is seen.
    """
    file.unlink(missing_ok=True)
    python = sys.executable if is_real else forked_python()
    done = subprocess.run(
        [str(part).replace(sys.executable, python) for part in command],
        cwd=ROOT,
        env={**(os.environ if environ is None else environ), **environ_with_hook(file)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}"
    return done.stdout, set(unpickled(file))


def in_one_process(commands: Sequence[Sequence[object]]) -> list[str]:
    """The command that runs the doors, [module, argument, ...] each, one after another; under
    torchrun each of them on all ranks."""
    told = [[str(part) for part in command] for command in commands]
    return [sys.executable, "-m", "tests.faults.audited", json.dumps(told)]


def main(commands: str) -> None:
    """Run the mains of doors; each must return 0."""
    began = dict(os.environ)
    for number, (door, *arguments) in enumerate(json.loads(commands)):
        if number and "TORCHELASTIC_RUN_ID" in began:
            # The agent's store is that of one meeting of the ranks; they meet elsewhere then.
            port = int(began["MASTER_PORT"]) + number
            os.environ.update(began, TORCHELASTIC_USE_AGENT_STORE="False", MASTER_PORT=str(port))
        code = importlib.import_module(door).main(arguments)
        assert code == 0, (door, arguments, code)
        print(f"AUDITED {door}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

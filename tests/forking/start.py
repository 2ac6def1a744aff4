"""The interpreter whose starts are forks, for a test session."""

import atexit
import functools
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

SHIM = Path(__file__).with_name("shim.py")
ROOT = Path(__file__).parents[2]
_servers: list[tuple["subprocess.Popen[bytes]", Path]] = []
SWITCH = "TOOLKIT_TEST_REAL_STARTS"  # 1: every start is a real one


# Libraries set these in the process of the tests as soon as one of them trains there. No start that
# had them would be a fork: they decide while something is imported.
SET_BY_LIBRARIES = (
    *("DS_ACCELERATOR", "DEEPSPEED_LOG_LEVEL", "KMP_DUPLICATE_LIB_OK"),
    *("PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR"),
)
_given = frozenset(os.environ)


def environ_of_starts() -> dict[str, str]:
    """The environment with which a start may be a fork, and in which its server begins."""
    environ = {n: v for n, v in os.environ.items() if n in _given or n not in SET_BY_LIBRARIES}
    return {**environ, "PYTHONPATH": str(ROOT)}


@functools.cache
def forked_python() -> str:
    """The path of an interpreter whose starts are forks; `sys.executable` where that is not wanted.

    Its server begins with the first start, in the environment of this moment: another environment
    is a real start (`server.IMPORTED`).
    """
    if os.environ.get(SWITCH) == "1":
        return sys.executable
    folder = Path(tempfile.mkdtemp(prefix="toolkit-forks-"))
    (folder / "bin").mkdir()
    python, address = folder / "bin" / "python", folder / "socket"
    # -I and -S leave out site-packages, which the shim needs not.
    python.write_text(
        f'#!/bin/sh\nexec {sys.executable} -I -S {SHIM} {address} {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    real = Path(sys.prefix) / "bin" / "activate"
    (folder / "bin" / "activate").write_text(f'. "{real}"\nPATH="{folder}/bin:$PATH"\n')
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(address))
    listener.listen(64)
    environ = environ_of_starts()
    del environ["PYTHONPATH"]
    threading.Thread(target=_serve, args=(listener, environ, python), daemon=True).start()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(python)


def forked_environment() -> str:
    """The folder of a virtual environment that is the one of the tests, but for its `python`."""
    python = forked_python()
    return sys.prefix if python == sys.executable else str(Path(python).parents[1])


def check_servers() -> None:
    """Raise AssertionError when a server has ended by itself: all later starts were real ones."""
    for server, errors in _servers:
        if (code := server.poll()) is not None:
            said = errors.read_text(errors="replace")[-2000:]
            raise AssertionError(f"the fork server ended with code {code}:\n{said}")


def _serve(listener: socket.socket, environ: dict[str, str], python: Path) -> None:
    """Start the server when the first shim calls; it takes over the socket."""
    select.select([listener], [], [])
    errors = python.with_name("errors")
    with errors.open("wb") as stderr:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.forking.server", str(listener.fileno()), str(python)],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.PIPE,  # its end is the server's: also when this process is killed
            stdout=subprocess.DEVNULL,  # what libraries print when they are imported
            stderr=stderr,
            pass_fds=[listener.fileno()],
        )
    _servers.append((server, errors))
    listener.close()
    atexit.register(server.wait)
    if server.stdin:
        atexit.register(server.stdin.close)  # first: exit handlers run from the last

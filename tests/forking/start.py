"""The interpreter of a test session whose starts are forks."""

import atexit
import contextlib
import functools
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

SHIM = Path(__file__).with_name("shim.py")
ROOT = Path(__file__).parents[2]
_servers: list[tuple["subprocess.Popen[bytes]", Path]] = []
SWITCH = "TOOLKIT_TEST_REAL_STARTS"  # 1: every start is a real one


# Libraries set these in the tests' process as soon as a test trains there. A start that had them
# would never be a fork, since they are read while modules are imported.
SET_BY_LIBRARIES = (
    *("DS_ACCELERATOR", "DEEPSPEED_LOG_LEVEL", "KMP_DUPLICATE_LIB_OK"),
    *("PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR"),
)
_given = frozenset(os.environ)


def environ_of_starts() -> dict[str, str]:
    """The environment in which the server begins, and with which a start can be a fork."""
    environ = {n: v for n, v in os.environ.items() if n in _given or n not in SET_BY_LIBRARIES}
    return {**environ, "PYTHONPATH": str(ROOT)}


@functools.cache
def forked_python() -> str:
    """The path of an interpreter whose starts are forks, or `sys.executable` if `SWITCH` says so.

    Its server begins with the first start, in the environment of this moment. A start in another
    environment is a real one (`server.IMPORTED`).
    """
    if os.environ.get(SWITCH) == "1":
        return sys.executable
    own = _Interpreter(environ_of_starts())
    atexit.register(own.end)
    return str(own.python)


@contextlib.contextmanager
def forking(environ: Mapping[str, str]) -> Iterator[str]:
    """An interpreter with a server of its own, for starts with variables that libraries read when
    they are imported. The server's own start pays off from the third fork on."""
    if os.environ.get(SWITCH) == "1":
        yield sys.executable
        return
    own = _Interpreter(dict(environ))
    try:
        yield str(own.python)
    finally:
        own.end()


def forked_environment() -> str:
    """The folder of a virtual environment like that of the tests, except for its `python`."""
    python = forked_python()
    return sys.prefix if python == sys.executable else str(Path(python).parents[1])


def check_servers() -> None:
    """Raise AssertionError when a server ended by itself, so that all later starts were real."""
    for server, errors in _servers:
        if (code := server.poll()) is not None:
            said = errors.read_text(errors="replace")[-2000:]
            raise AssertionError(f"the fork server ended with code {code}:\n{said}")


class _Interpreter:
    """The path of an interpreter, and the server that forks its starts."""

    def __init__(self, environ: dict[str, str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="toolkit-forks-"))
        (self._folder / "bin").mkdir()
        self.python, address = self._folder / "bin" / "python", self._folder / "socket"
        # -I and -S leave out site-packages, which the shim does not need.
        self.python.write_text(
            f'#!/bin/sh\nexec {sys.executable} -I -S {SHIM} {address} {sys.executable} "$@"\n'
        )
        self.python.chmod(0o755)
        real = Path(sys.prefix) / "bin" / "activate"
        (self._folder / "bin" / "activate").write_text(
            f'. "{real}"\nPATH="{self._folder}/bin:$PATH"\n'
        )
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(address))
        listener.listen(64)
        self._environ = {name: text for name, text in environ.items() if name != "PYTHONPATH"}
        self._server: subprocess.Popen[bytes] | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
        self._thread.start()

    def _serve(self, listener: socket.socket) -> None:
        """Start the server, which takes over the socket, when the first shim calls."""
        while not select.select([listener], [], [], 0.1)[0]:
            if self._is_over.is_set():
                listener.close()
                return
        errors = self.python.with_name("errors")
        with errors.open("wb") as stderr:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.forking.server"]
                + [str(listener.fileno()), str(self.python)],
                cwd=ROOT,
                env=self._environ,
                stdin=subprocess.PIPE,  # the server ends with it, even when this process is killed
                stdout=subprocess.DEVNULL,  # what libraries print when they are imported
                stderr=stderr,
                pass_fds=[listener.fileno()],
            )
        _servers.append((self._server, errors))
        listener.close()

    def end(self) -> None:
        """End the server, and with it the children that it forked."""
        self._is_over.set()
        self._thread.join()
        if self._server and self._server.stdin:
            _servers[:] = [pair for pair in _servers if pair[0] is not self._server]
            self._server.stdin.close()
            self._server.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

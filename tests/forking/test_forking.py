"""A forked start is a real one in all that a test can see of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.forking.server import IMPORTED
from tests.forking.start import SWITCH, forked_python

IS_FORKED = "import sys; print('deepspeed' in sys.modules)"
# Each prints and ends in its own way.
PROGRAMS = {
    "arguments": "import sys; print(sys.argv, __name__)",
    "output": "import sys; print('out'); print('err', file=sys.stderr); sys.stdout.write('end')",
    "unicode": "print('Straße 東京')",
    "input": "import sys; print(sys.stdin.read().upper())",
    "directory": "import os; print(os.getcwd())",
    "environment": "import os; print(os.environ.get('MARK'), os.environ.get('PATH'))",
    "c environment": "import os; os.system('echo $MARK')",
    "umask": "import os; print(os.umask(0))",
    "open files": "import os; print(len(os.listdir('/proc/self/fd')))",
    "path": "import sys; print(sys.path[:2])",
    "code": "import sys; sys.exit(7)",
    "none": "import sys; sys.exit()",
    "message": "import sys; sys.exit('went wrong')",
    "error": "raise ValueError('bad')",
    "large code": "import sys; sys.exit(300)",
    "handler": "import atexit; atexit.register(print, 'bye')",
    "thread": "import threading, time\n"
    "def late():\n    time.sleep(0.1); print('late')\nthreading.Thread(target=late).start()",
    "interrupt": "raise KeyboardInterrupt",
    "kill": "import os; os.kill(os.getpid(), 9)",
    "terminated": "import os, signal; print(1, flush=True); os.kill(os.getpid(), signal.SIGTERM)",
    "abort": "import os; os.abort()",
    "hard exit": "import os; print('lost'); os._exit(3)",
    "default signals": "import signal; print([signal.getsignal(n) for n in (10, 12, 15, 17)])",
    "mask": "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []))",
    "main": "import sys; print(sys.modules['__main__'].__dict__['sys'].__name__)",
}


def start(python: str, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "MARK": "here"}
    environ |= more.pop("environ", {})  # type: ignore[arg-type]
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [python, *arguments], env=environ, capture_output=True, text=True, check=False, **more
    )


@pytest.fixture(scope="module")
def python() -> str:
    if os.environ.get(SWITCH) == "1":
        pytest.skip(f"{SWITCH}=1: every start is a real one")
    python = forked_python()
    assert start(python, "-c", IS_FORKED).stdout == "True\n"
    return python


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_forked_start_prints_and_ends_as_a_real_one(
    program: str, python: str, tmp_path: Path
) -> None:
    code = PROGRAMS[program]
    more = {"input": "given", "cwd": tmp_path, "umask": 0o027}
    forked = start(python, "-c", code, "first", "second", **more)
    real = start(sys.executable, "-c", code, "first", "second", **more)
    assert (forked.returncode, forked.stdout) == (real.returncode, real.stdout)
    assert bool(forked.stderr) == bool(real.stderr)
    assert forked.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


def test_a_module_and_a_script_are_run_as_main(python: str, tmp_path: Path) -> None:
    (tmp_path / "inside.py").write_text("VALUE = 3\n")
    script = tmp_path / "script.py"
    script.write_text("import sys, inside\nprint(__name__, __file__, sys.argv, inside.VALUE)\n")
    for arguments in ([str(script), "x"], ["-m", "script", "x"], ["-u", str(script)]):
        forked, real = (start(one, *arguments, cwd=tmp_path) for one in (python, sys.executable))
        assert (forked.returncode, forked.stdout) == (real.returncode, real.stdout)


def test_children_draw_different_random_numbers(python: str) -> None:
    code = "import random, numpy; print(random.random(), numpy.random.rand())"
    assert start(python, "-c", code).stdout != start(python, "-c", code).stdout


@pytest.mark.parametrize("name", IMPORTED)
def test_what_imports_read_from_the_environment_makes_a_real_start(name: str, python: str) -> None:
    variable = f"{name}X" if name.endswith("_") or name == "PYTHON" else name
    assert start(python, "-c", IS_FORKED, environ={variable: "7"}).stdout == "False\n"


@pytest.mark.parametrize("options", [["-I"], ["-S"], ["-X", "dev"], ["-O"]])
def test_options_of_the_interpreter_make_a_real_start(options: list[str], python: str) -> None:
    assert start(python, *options, "-c", IS_FORKED).stdout == "False\n"


def test_a_file_that_is_passed_on_makes_a_real_start(python: str) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing):
        assert start(python, "-c", IS_FORKED, pass_fds=[reading]).stdout == "False\n"


def test_signals_reach_the_child(python: str) -> None:
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGUSR2, lambda *_: (print('told', flush=True), sys.exit(5)))\n"
        "print('ready', flush=True)\nsignal.pause()"
    )
    process = subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR2)
        assert process.stdout.read() == "told\n"
    assert process.returncode == 5


def test_who_kills_the_shim_kills_the_child(python: str) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    process = subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout
        child = int(process.stdout.readline())
        process.kill()
        process.stdout.read()  # the child holds the other end until it is gone
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline, f"process {child} lives on"
        time.sleep(0.01)


def test_many_start_at_once(python: str) -> None:
    code = "import sys; print(sys.argv[1])"
    running = [
        subprocess.Popen([python, "-c", code, str(n)], stdout=subprocess.PIPE, text=True)
        for n in range(20)
    ]
    assert [process.communicate()[0] for process in running] == [f"{n}\n" for n in range(20)]

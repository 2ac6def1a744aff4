"""A forked start is a real one in all that a test can see of it."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, free_port, need
from tests.forking.server import IMPORTED
from tests.forking.shim import FORWARDED, LOG
from tests.forking.start import SWITCH, forked_python, forking

LOWEST = "renice -n 19 $$ > /dev/null"  # priority, which the tests themselves may have
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
    "limits": "import resource as r\n"
    "print([r.getrlimit(n) for n in (r.RLIMIT_NOFILE, r.RLIMIT_CORE, r.RLIMIT_FSIZE)])",
    "niceness": "import os; print(os.nice(0))",
    "groups": "import os; print(os.getgroups())",
    "temporary": "import tempfile; print(tempfile.gettempdir())",
    "main": "import sys; print(sys.modules['__main__'].__dict__['sys'].__name__)",
}


def start(python: str, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "MARK": "here"}
    environ.pop(LOG, None)
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


def test_files_that_are_passed_on_keep_their_numbers(python: str) -> None:
    """The server has files of its own at the lowest."""
    code = "import os, sys\nfor n in (3, 5, 4, 120): os.write(n, f'{n} '.encode())\n" + IS_FORKED
    shell = 'exec 3>&1 5>&1 4>&1 120>&1; exec "$@"'
    assert start("bash", "-c", shell, "-", python, "-c", code).stdout == "3 5 4 120 True\n"


def test_a_terminal_makes_a_real_start(python: str) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours), os.fdopen(theirs, "w") as terminal:
        assert start(python, "-c", IS_FORKED, stdin=terminal).stdout == "False\n"


@pytest.mark.parametrize(
    "before",
    [
        "ulimit -S -n 99",
        "ulimit -H -n 300; ulimit -H -c 0; ulimit -S -f 1000",
        LOWEST,
        "trap '' INT QUIT USR1",
        "export TMPDIR=/var/tmp",
    ],
)
def test_what_a_process_inherits_reaches_the_child(before: str, python: str) -> None:
    """Without a real start; each differs from what the server has."""
    show = "import signal\nprint([signal.getsignal(n) for n in (1, 2, 3, 10, 12, 15)])\n"
    show += "\n".join(PROGRAMS[name] for name in ("limits", "niceness", "mask", "temporary"))
    plain, *given = (
        start("bash", "-c", f'{shell}; exec "$@"', "-", one, "-c", show).stdout
        for shell, one in ((":", python), (before, python), (before, sys.executable))
    )
    assert given[0] == given[1]
    assert given[0] != plain or (before == LOWEST and os.nice(0) == 19)
    done = start("bash", "-c", f'{before}; exec "$@"', "-", python, "-c", IS_FORKED)
    assert done.stdout == "True\n"


def test_other_namespaces_are_entered(python: str) -> None:
    need(os.geteuid() == 0, "namespaces need root")
    code = "import os, platform, socket; print(socket.gethostname(), platform.node())\n"
    code += "print(open('/proc/net/dev').read().count(':'), os.getcwd())\n" + IS_FORKED
    command = ["unshare", "--net", "--uts", "--mount", "sh", "-c", 'hostname other; exec "$@"', "-"]
    done = start(*command, python, "-c", code)
    assert done.stdout == f"other other\n1 {os.getcwd()}\nTrue\n"


@pytest.mark.parametrize("limit", ["-v 90000000", "-s 4096"])
def test_limits_that_an_interpreter_starts_with_make_a_real_start(limit: str, python: str) -> None:
    shell = f'ulimit -S {limit}; exec "$@"'
    assert start("bash", "-c", shell, "-", python, "-c", IS_FORKED).stdout == "False\n"


def test_the_log_says_what_was_forked_and_why_the_rest_was_not(python: str, tmp_path: Path) -> None:
    environ = {LOG: str(tmp_path / "log")}
    start(python, "-c", "pass", "given", environ=environ)
    start(python, "-I", "-c", "pass", environ=environ)
    start(python, "-c", "pass", environ=environ | {"DS_X": "7"})
    (tmp_path / "any.py").write_text("")
    start(python, "-c", "pass", environ=environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"})
    assert (tmp_path / "log").read_text().splitlines() == [
        "forked: -c pass given",
        "real (options of the interpreter): -I -c pass",
        "real (imports have read DS_X): -c pass",
        "real (a PYTHONPATH, from which anything might have been imported): -c pass",
    ]


def test_what_only_the_child_reads_makes_no_real_start(python: str) -> None:
    """slurm/env.sh sets such a variable for each job."""
    environ = {"PYTHONUNBUFFERED": "1", "TRITON_CACHE_DIR": "/x", "TORCH_EXTENSIONS_DIR": "/x"}
    environ |= {"PYTHONPATH": f"{ROOT}:{ROOT}"}
    assert start(python, "-c", IS_FORKED, environ=environ).stdout == "True\n"


@pytest.mark.parametrize("path", ["", str(ROOT)])
def test_modules_are_looked_for_as_in_a_real_start(path: str, python: str, tmp_path: Path) -> None:
    code = "import sys; print(sys.path)"
    for arguments in (["-c", code], ["-m", "shown"]):
        (tmp_path / "shown.py").write_text(code)
        found = [
            start(one, *arguments, cwd=tmp_path, environ={"PYTHONPATH": path}).stdout
            for one in (python, sys.executable)
        ]
        assert found[0] == found[1]


def test_the_toolkit_of_another_checkout_is_imported_from_there(
    python: str, tmp_path: Path
) -> None:
    (tmp_path / "toolkit").mkdir()
    (tmp_path / "toolkit" / "__init__.py").write_text("")
    (tmp_path / "toolkit" / "verify.py").write_text("MARK = 'there'")
    code = "from toolkit import verify; print(verify.__file__)"
    for place in (tmp_path, ROOT):
        found = start(python, "-c", code, cwd=place, environ={"PYTHONPATH": ""}).stdout
        assert found == f"{place}/toolkit/verify.py\n"
    own = start(python, "-c", f"{code}\n{IS_FORKED}", cwd=tmp_path).stdout
    assert own == f"{tmp_path}/toolkit/verify.py\nTrue\n"


def test_a_sitecustomize_is_run_as_in_a_real_start(python: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.environ['MARK'] = 'customized'\n")
    code = f"import os; print(os.environ['MARK'])\n{IS_FORKED}"
    environ = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    assert start(python, "-c", code, environ=environ).stdout == "customized\nTrue\n"
    (tmp_path / "other.py").write_text("")
    assert start(python, "-c", code, environ=environ).stdout == "customized\nFalse\n"


def test_another_server_has_another_environment(python: str) -> None:
    """It ends with its `with` block."""
    environ = {**os.environ, "HF_HOME": "/there"}
    with forking(environ) as other:
        code = f"import os; print(os.environ['HF_HOME'])\n{IS_FORKED}"
        assert start(other, "-c", code, environ=environ).stdout == "/there\nTrue\n"
        assert start(python, "-c", IS_FORKED, environ=environ).stdout == "False\n"
        assert Path(other).exists()
    assert not Path(other).exists()


def test_a_launcher_starts_forks(python: str, tmp_path: Path) -> None:
    """In any other child `sys.executable` is the interpreter itself."""
    (tmp_path / "rank.py").write_text(f"{IS_FORKED}\nprint(sys.executable)\n")
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    log = tmp_path / "log"
    environ = {LOG: str(log)}
    done = start(
        python, *command, str(free_port()), str(tmp_path / "rank.py"), environ=environ, cwd=tmp_path
    )
    assert sorted(done.stdout.split()) == sorted(["True", sys.executable] * 2), done.stderr
    assert [line.split(":")[0] for line in log.read_text().splitlines()] == ["forked"] * 3


def test_what_a_child_leaves_behind_ends_with_the_server(python: str) -> None:
    """Of a session of its own, whose server is a fork too: it has all imported."""
    leave = "import subprocess as s; n = s.DEVNULL\n"
    leave += "print(s.Popen(['sleep', '600'], stdout=n, stderr=n).pid)"
    session = (
        "import subprocess as s, sys\nsys.executable = sys.argv[1]\n"
        "from tests.forking.start import forked_python\n"
        f"print(s.run([forked_python(), '-c', {leave!r}], capture_output=True, text=True).stdout)"
    )
    left = int(start(sys.executable, "-c", session, python, cwd=ROOT).stdout)
    assert not Path(f"/proc/{left}").exists()


def test_the_controller_of_local_jobs_is_real_and_their_ranks_are_forks(
    python: str, tmp_path: Path
) -> None:
    code = (
        "import sys, submitit; sys.executable = sys.argv[1]\n"
        "executor = submitit.LocalExecutor(sys.argv[2])\n"
        "executor.update_parameters(timeout_min=5)\n"
        "job = executor.submit(eval, \"'deepspeed' in __import__('sys').modules\")\n"
        "print(job.result())"
    )
    assert start(python, "-c", code, python, str(tmp_path)).stdout == "True\n"


@pytest.mark.parametrize("name", FORWARDED)
def test_signals_reach_the_child(name: str, python: str) -> None:
    code = (
        "import signal, sys\n"
        f"signal.signal(signal.{name}, lambda *_: (print('told', flush=True), sys.exit(5)))\n"
        "print('ready', flush=True)\nsignal.pause()"
    )
    process = subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.Signals[name])
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

"""A process that has imported everything and forks what `shim.py` asks for.

    python -m tests.forking.server DESCRIPTOR SHIM

DESCRIPTOR is the number of a listening socket; SHIM is the interpreter whose starts come here. The
server ends when its standard input does.

A child begins as a real start would: with its own command, environment, directory, files, limits,
niceness, namespaces, ignored and blocked signals and random numbers, without signal handlers and
without the server's files. But it has modules that it did not import, and the server's hashes of
strings. So a test of imports, of memory or of an interpreter's own options needs a real start.
Some environment variables are read while modules are imported (`IMPORTED`), which the server did
long ago: a start with another value of one of them is refused, and becomes a real start.

A child's `sys.executable` is the interpreter. In a child that starts others (`LAUNCHERS`) it is the
shim, so that ranks, and the jobs and scripts that it submits, come here as well.
"""

import array
import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import importlib.machinery
import io
import json
import os
import platform
import random
import resource
import runpy
import selectors
import signal
import socket
import struct
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import Any, NoReturn

from tests.forking import shim
from tests.used import tell

PR_SET_CHILD_SUBREAPER = 36
# Read by libraries when they are imported, or by the interpreter when it starts.
IMPORTED = (
    *("OMP_", "MKL_", "KMP_", "OPENBLAS_", "NUMEXPR_", "ATEN_", "LD_", "MALLOC_", "GLIBC_"),
    *("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "DATASETS_", "ARROW_", "MPLBACKEND"),
    *("DS_", "TORCH_", "TRITON_", "CUDA_", "PYTHON", "COVERAGE", "HOME", "XDG_CACHE_HOME"),
)
# Variables among those that are read later, by the child; `become` applies Python's own.
PER_CHILD = (
    *("PYTHONUNBUFFERED", "PYTHONPATH", "TORCH_NCCL", "TORCHELASTIC"),
    *("TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR"),  # slurm/env.sh sets them per job
    # Without a driver nothing reads it.
    *(() if Path("/dev/nvidiactl").exists() else ("CUDA_VISIBLE_DEVICES",)),
)
ROOT = Path(__file__).parents[2]
# Modules whose processes start other interpreters, as a rule more than one.
LAUNCHERS = ("torch.distributed.run", "toolkit.launch", "toolkit.quickstart", "tests.benchmarks")
MODULES = (
    *("torch", "torch.distributed.run", "torch.distributed.elastic.multiprocessing.api"),
    *("torch.nn.attention.flex_attention", "torch.utils.checkpoint"),
    *("transformers", "transformers.models.auto.modeling_auto", "transformers.modeling_utils"),
    *("transformers.models.mistral.modeling_mistral", "transformers.models.llama.modeling_llama"),
    *("transformers.integrations.deepspeed", "transformers.trainer_pt_utils", "tokenizers"),
    *("deepspeed", "deepspeed.runtime.engine", "deepspeed.runtime.zero.stage3", "peft"),
    *(
        "deepspeed.runtime.zero.muon.muon_optimizer",
        "deepspeed.ops.adam",
        "safetensors.torch",
        "datasets",
    ),
    *("datasets.io.parquet", "pyarrow.parquet", "pyarrow.compute", "scipy.io", "safetensors.numpy"),
    *("scipy.stats", "sklearn.linear_model", "sklearn.cluster", "sklearn.metrics", "submitit"),
    *("pydantic", "yaml", "rich.console", "rich.table", "tqdm", "mwxml", "mwparserfromhell"),
    *("sentencex", "py3langid", "rensa", "seqeval.metrics", "pytrec_eval", "accelerate"),
    *("setuptools", "pydantic.type_adapter", "peft.utils.transformers_weight_conversion"),
    *(
        "deepspeed.module_inject.auto_ep_layer",
        "deepspeed.runtime.superoffload.superoffload_stage3",
    ),
    *("torch._subclasses.schema_check_mode", "submitit.core._submit"),
)


def preload() -> None:
    """Import what the doors need, so that no child has to. A fork needs a single thread."""
    if not torch_sees_a_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # as toolkit.parallel.zero does
    for name in (*MODULES, *own_modules()):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _fill_caches()
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text().strip() for task in tasks.iterdir()]
    # Arrow's allocator has a thread, but handles forks by itself.
    others = [name for name in names[1:] if name != "jemalloc_bg_thd"]
    assert not others, f"an import started threads, so that a fork is unsafe: {others}"
    gc.collect()
    gc.freeze()  # a collection in a child must not copy every page


def own_modules() -> list[str]:
    """The toolkit's modules, whose files do not change in a test session; see `_forget_others`."""
    folder = ROOT / "toolkit"
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in folder.rglob("*.py")]
    return sorted(
        ".".join(part for part in names if part != "__init__")
        for names in parts
        if names[-1] not in ("__main__", "mteb_tasks")  # mteb imports polars, which starts threads
    )


def _fill_caches() -> None:
    """Compute what every process would compute for itself, always with the same result."""
    import deepspeed
    from transformers import conversion_mapping

    for model in ("mistral", "llama"):
        conversion_mapping.get_checkpoint_conversion_mapping(model)
    before = shim.open_files()
    _ = deepspeed.ops.__compatible_ops__  # asks a compiler
    for number in set(shim.open_files()) - set(before):  # left open by the library that opened them
        os.close(number)


def torch_sees_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def decided(environ: dict[str, str]) -> dict[str, str]:
    """The variables that an import may have read."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(IMPORTED) and not name.startswith(PER_CHILD)
    }


def is_supported(arguments: list[str]) -> bool:
    """Whether `become` can run this: -u, then -m, -c or a script."""
    rest = arguments[1:] if arguments[:1] == ["-u"] else arguments
    if not rest:
        return False
    return (rest[0] in ("-m", "-c") and len(rest) > 1) or rest[0].endswith(".py")


def search_path(environ: dict[str, str]) -> list[str]:
    """The folders that PYTHONPATH puts before those of the interpreter."""
    return [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def is_ours(path: str) -> bool:
    """Whether this folder of PYTHONPATH changes no import, except that of sitecustomize, which a
    child runs as an interpreter does."""
    contents = [p for p in Path(path).glob("*") if p.suffix in (".py", ".so") or p.is_dir()]
    return path == str(ROOT) or {p.name for p in contents} - {"__pycache__"} <= {"sitecustomize.py"}


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


class Server:
    """Answers shims until its standard input ends; then it kills all children."""

    def __init__(self, listener: socket.socket, *, own: dict[str, str]) -> None:
        self._own = own
        # Variables that imports set when they are unset: a child that has them imported the same.
        self._added = {k: v for k, v in decided(dict(os.environ)).items() if k not in own}
        self._surroundings = json.loads(json.dumps(shim.surroundings()))
        self._shims: dict[int, socket.socket] = {}  # by the process number of the child
        self._listener = listener
        # Orphans of children become the server's children, and end with it.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._woken, self._waker = socket.socketpair()
        for one in (self._woken, self._waker):
            one.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self._selector = selectors.DefaultSelector()
        for source in (self._listener, self._woken, sys.stdin):
            self._selector.register(source, selectors.EVENT_READ)

    def serve(self) -> dict[str, Any] | None:
        """Serve. Returns the request in a child, and None in the server at its end."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is sys.stdin:
                    _end_all_children()
                    return None
                if key.fileobj is self._listener:
                    asked = self._accept()
                    if asked is not None:
                        return asked
                elif key.fileobj is self._woken:
                    with contextlib.suppress(BlockingIOError):
                        self._woken.recv(4096)
                    self._reap()
                elif key.data in self._shims:  # the shim was killed, and so must its child be
                    os.kill(key.data, signal.SIGKILL)
                    self._selector.unregister(key.fileobj)

    def _accept(self) -> dict[str, Any] | None:
        connection, _ = self._listener.accept()
        connection.settimeout(10)
        try:
            asked, files = _received(connection)
            asked["shim"] = _process_of(connection)
        except (OSError, EOFError, ValueError):
            connection.close()
            return None
        if reason := self._refusal(asked):
            with contextlib.suppress(OSError):
                connection.sendall(bytes(8) + reason.encode())
            connection.close()
            for number in files:
                os.close(number)
            return None
        process = os.fork()
        if process == 0:
            self._leave(connection)
            asked["files"] = files
            return asked
        for number in files:
            os.close(number)
        self._shims[process] = connection
        self._selector.register(connection, selectors.EVENT_READ, data=process)
        with contextlib.suppress(OSError):
            connection.sendall(process.to_bytes(8, "little"))
        return None

    def _refusal(self, asked: dict[str, Any]) -> str:
        """Why a fork would differ from a real start; empty where it would not."""
        environ, arguments, limits = asked["environ"], asked["arguments"], asked["limits"]
        given = decided(environ)
        given = {k: v for k, v in given.items() if self._added.get(k) != v}
        if names := differing(given, self._own):
            return f"imports have read {', '.join(names)}"
        if not all(is_ours(path) for path in search_path(environ)):
            return "a PYTHONPATH, from which anything might have been imported"
        if not is_supported(arguments):
            return "options of the interpreter"
        if arguments[:2] == ["-m", "submitit.local._local"]:
            return "its starter takes the number of the process for that of a job"
        if "PMI_FD" in environ:
            return "a rank of mpiexec, which kills what lives on when its files are closed"
        if asked["namespaces"] != shim.namespaces() and os.geteuid() != 0:
            return "other namespaces"
        for name, value in self._surroundings.items():
            if asked["surroundings"][name] != value:
                return f"other {name}: {asked['surroundings'][name]}, here {value}"
        own = shim.limits(shim.TAKEN_LIMITS)
        if any(_is_more(limits[name][1], own[name][1]) for name in own):
            return f"higher limits: {limits}, here {own}"
        if asked["groups"] != os.getgroups() and os.geteuid() != 0:
            return f"other groups: {asked['groups']}"
        return "" if asked["niceness"] >= os.nice(0) else "a higher priority"

    def _reap(self) -> None:
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process == 0:
                return
            tell()
            connection = self._shims.pop(process, None)
            if connection is None:  # an orphan of a child
                continue
            with contextlib.suppress(KeyError):
                self._selector.unregister(connection)
            with contextlib.suppress(OSError):
                connection.sendall(status.to_bytes(8, "little"))
            connection.close()

    def _leave(self, connection: socket.socket) -> None:
        """Stop being a server, in a child."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for one in (self._listener, self._woken, self._waker, connection, *self._shims.values()):
            one.close()


def _end_all_children() -> None:
    """Kill the children of this process, and those orphaned by that, until none is left."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while numbers := children.read_text().split():
        for process in map(int, numbers):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _process_of(connection: socket.socket) -> int:
    """The process number at the other end of a connection."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", credentials)[0])


def _enter_namespaces(wanted: dict[str, str], *, process: int) -> None:
    """Enter the namespaces of another process, where they differ from ours."""
    own = shim.namespaces()
    names = [name for name in wanted if wanted[name] != own[name]]
    files = [os.open(f"/proc/{process}/ns/{name}", os.O_RDONLY) for name in names]
    for file in files:
        if ctypes.CDLL(None, use_errno=True).setns(file, 0):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(file)
    vars(platform)["_uname_cache"] = None  # caches the host's name


def _is_more(limit: int, other: int) -> bool:
    return other != resource.RLIM_INFINITY and (limit > other or limit == resource.RLIM_INFINITY)


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A shim's request, and the numbers that its files have in this process."""
    size = array.array("i")
    space = socket.CMSG_SPACE(shim.MOST_FILES * size.itemsize)
    head, ancillary, _, _ = connection.recvmsg(8, space)
    for _, _, data in ancillary:
        size.frombytes(data)
    content, wanted = b"", int.from_bytes(head, "little")
    while len(content) < wanted:
        got = connection.recv(wanted - len(content))
        if not got:
            raise EOFError("the shim is gone")
        content += got
    return json.loads(content), list(size)


def become(asked: dict[str, Any], *, python: str, path: list[str]) -> NoReturn:
    """Become the requested process, to its end; `path` is an interpreter's own search path."""
    arguments, environ = asked["arguments"], asked["environ"]
    os.setpgid(0, 0)  # a signal to the shim's group then reaches the child once, forwarded
    _take_over(asked["files"], numbers=asked["numbers"])
    os.environ.clear()
    os.environ.update(environ)
    os.umask(asked["umask"])
    _enter_namespaces(asked["namespaces"], process=asked["shim"])
    os.chdir(asked["directory"])
    for name, (soft, hard) in asked["limits"].items():
        resource.setrlimit(getattr(resource, name), (soft, hard))
    os.nice(asked["niceness"] - os.nice(0))
    if asked["groups"] != os.getgroups():
        os.setgroups(asked["groups"])
    random.seed()
    sys.modules["numpy"].random.seed()
    tempfile.tempdir = None  # set from TMPDIR at first use
    is_unbuffered = arguments[:1] == ["-u"] or bool(environ.get("PYTHONUNBUFFERED"))
    _open_streams(is_unbuffered=is_unbuffered)
    rest = arguments[1:] if arguments[:1] == ["-u"] else arguments
    if rest[0] == "-m" and f"{rest[1]}.".startswith(tuple(f"{name}." for name in LAUNCHERS)):
        sys.executable = python
    sys.orig_argv = [sys.executable, *arguments]
    sys.path[:] = list(dict.fromkeys([*search_path(environ), *path]))
    if rest[0] in ("-m", "-c"):
        sys.path.insert(0, os.getcwd() if rest[0] == "-m" else "")
    else:
        sys.path.insert(0, str(Path(rest[0]).resolve().parent))
    _forget_others()
    for folder in search_path(environ):
        if (Path(folder) / "sitecustomize.py").exists():
            _forget("sitecustomize")
            importlib.import_module("sitecustomize")
            break
    _set_signals(ignored=asked["ignored"], mask=asked["mask"])
    _run(rest)


def _forget_others() -> None:
    """Drop the toolkit's modules if the child would import those of another checkout."""
    spec = importlib.machinery.PathFinder.find_spec("toolkit")
    if spec is None or spec.origin != str(ROOT / "toolkit" / "__init__.py"):
        for name in [name for name in sys.modules if name.split(".")[0] == "toolkit"]:
            _forget(name)


def _forget(name: str) -> None:
    """Forget a module, so that it is imported anew."""
    if sys.modules.pop(name, None) is not None:
        parent, _, child = name.rpartition(".")
        sys.modules.get(parent, types.ModuleType("")).__dict__.pop(child, None)


def _take_over(files: list[int], *, numbers: list[int]) -> None:
    """Give the files the numbers that they have in the shim."""
    free = max(*numbers, *files) + 1
    for index, file in enumerate(files):
        files[index] = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, free)
        os.close(file)
    for file, number in zip(files, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)


def _set_signals(*, ignored: list[int], mask: list[int]) -> None:
    """Set signals as an interpreter finds them when it starts."""
    for number in map(int, signal.valid_signals()):
        is_ignored = signal.getsignal(number) == signal.SIG_IGN
        if number in (signal.SIGPIPE, signal.SIGXFSZ) or is_ignored == (number in ignored):
            continue
        if number in ignored:
            signal.signal(number, signal.SIG_IGN)
        elif number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        else:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _run(rest: list[str]) -> NoReturn:
    """Run a command as `__main__`, and end as an interpreter does: with the same exit code, after
    all threads and exit handlers. Objects are not destroyed, which would take as long as a small
    test."""
    code = 0
    try:
        _run_main(rest)
    except SystemExit as end:
        if isinstance(end.code, int):
            code = end.code
        elif end.code is not None:
            print(end.code, file=sys.stderr)
            code = 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 120  # the interpreter's code for output that cannot be written
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


def _run_main(rest: list[str]) -> None:
    kind, *others = rest
    if kind == "-m":
        sys.argv = others
        _forget(others[0])
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *others[1:]]
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(others[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = rest
        runpy.run_path(kind, run_name="__main__")


def _open_streams(*, is_unbuffered: bool) -> None:
    """Open the standard streams as an interpreter does."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        errors = "backslashreplace" if name == "stderr" else "strict"
        stream = io.TextIOWrapper(
            open(number, "wb", 0 if is_unbuffered else -1, closefd=False),  # noqa: SIM115
            encoding="utf-8",
            errors=errors,
            line_buffering=name == "stderr",
            write_through=is_unbuffered,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def main() -> None:
    """Serve; a child ends in `become`."""
    descriptor, python = sys.argv[1:]
    own = decided(dict(os.environ))  # before imports, which set some of these variables
    # `-m` has put the directory of the server first, which itself has no PYTHONPATH.
    path = sys.path[1:]  # before imports, some of which add to it
    preload()
    asked = Server(socket.socket(fileno=int(descriptor)), own=own).serve()
    if asked is not None:
        become(asked, python=python, path=path)
    os._exit(0)


if __name__ == "__main__":
    main()

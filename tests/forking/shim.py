"""Stands in for the interpreter: a forked child runs the command, and the shim ends as it does.

It runs without site-packages (`python -I -S`), since its own start must cost next to nothing. It
forwards signals to the child; when it is killed, the server kills the child. A start that a fork
could not equal becomes a real one: on a terminal, or when the server says so. With
TOOLKIT_TEST_FORK_LOG=FILE each start adds a line to FILE: "forked", or why it was a real start, and
the command.

    shim.py SOCKET PYTHON ARGUMENTS...
"""

import array
import json
import os
import resource
import signal
import socket
import sys

LOG = "TOOLKIT_TEST_FORK_LOG"
# A child takes over the "taken" ones; the "equal" and "fixed" ones must match the server's.
TAKEN_LIMITS = ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NOFILE")
EQUAL_LIMITS = ("RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_MEMLOCK", "RLIMIT_NPROC")
TAKEN_NAMESPACES, FIXED_NAMESPACES = ("net", "uts", "ipc", "mnt"), ("pid", "user")
FORWARDED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCONT", "SIGTSTP")
MOST_FILES = 200  # one message can carry hardly more


def surroundings() -> dict[str, object]:
    """What a child inherits from the server and cannot change after the fork."""
    return {
        "namespaces": namespaces(FIXED_NAMESPACES),
        "user": [os.getuid(), os.geteuid(), os.getgid()],
        "limits": limits(EQUAL_LIMITS),
        "processors": sorted(os.sched_getaffinity(0)),
    }


def namespaces(names: tuple[str, ...] = TAKEN_NAMESPACES) -> dict[str, str]:
    """The namespaces that this process is in."""
    return {name: os.readlink(f"/proc/self/ns/{name}") for name in names}


def limits(names: tuple[str, ...]) -> dict[str, list[int]]:
    """The soft and the hard limit of each resource."""
    return {name: list(resource.getrlimit(getattr(resource, name))) for name in names}


def ignored_signals() -> list[int]:
    """The signals that a process started here would ignore (nohup), but for Python's own two."""
    own = (signal.SIGPIPE, signal.SIGXFSZ)
    numbers = [number for number in signal.valid_signals() if number not in own]
    return [int(number) for number in numbers if signal.getsignal(number) == signal.SIG_IGN]


def open_files() -> list[int]:
    """The numbers of all open files."""
    listed = [int(name) for name in os.listdir("/proc/self/fd")]
    # The listing itself was open while it was read.
    return sorted(number for number in listed if os.path.exists(f"/proc/self/fd/{number}"))


def reason_for_a_real_start(files: list[int]) -> str:
    """Why this must be a real start, before asking the server; empty if it need not be."""
    if files[:3] != [0, 1, 2]:
        return "a standard stream is closed"
    if len(files) > MOST_FILES:
        return f"{len(files)} open files"
    return "a terminal" if any(os.isatty(number) for number in files) else ""


def ask(
    connection: socket.socket, arguments: list[str], *, files: list[int], mask: list[int]
) -> tuple[int, str]:
    """The process number of the child; or 0 and the reason why this must be a real start."""
    umask = os.umask(0o022)
    os.umask(umask)
    asked = {
        "arguments": arguments,
        "environ": dict(os.environ),
        "directory": os.getcwd(),
        "umask": umask,
        "surroundings": surroundings(),
        "namespaces": namespaces(),
        "numbers": files,
        "limits": limits(TAKEN_LIMITS),
        "niceness": os.nice(0),
        "groups": os.getgroups(),
        "ignored": ignored_signals(),
        "mask": mask,
    }
    content = json.dumps(asked, ensure_ascii=True).encode()
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
    connection.sendmsg([len(content).to_bytes(8, "little")], ancillary)
    connection.sendall(content)
    answer = connection.recv(8)
    if len(answer) < 8:
        return 0, "the server is gone"
    process = int.from_bytes(answer, "little")
    return process, "" if process else connection.recv(4096).decode()


def started(
    path: str, arguments: list[str], *, mask: list[int]
) -> tuple[socket.socket | None, int, str]:
    """The connection that reports the child's end, and its process number; or why there is none."""
    files = open_files()
    if reason := reason_for_a_real_start(files):
        return None, 0, reason
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
        process, reason = ask(connection, arguments, files=files, mask=mask)
    except OSError as error:
        process, reason = 0, f"no server: {error}"
    if not process:
        connection.close()
        return None, 0, reason
    for number in files:
        os.close(number)  # a reader of the child's output sees its end when the child ends
    return connection, process, ""


def log(how: str, arguments: list[str]) -> None:
    """Log how a command was started, if `LOG` is set."""
    if LOG in os.environ:
        file = os.open(os.environ[LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        line = " ".join([f"{how}:", *arguments]).replace("\n", "\\n")[:300]
        os.write(file, (line + "\n").encode(errors="backslashreplace"))
        os.close(file)


def main() -> None:
    """Start the child, forward signals, wait, and end in the same way."""
    path, python, *arguments = sys.argv[1:]
    # Before the server is asked: a signal in between must not get lost.
    names = [getattr(signal, name) for name in FORWARDED]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, names)
    connection, process, reason = started(path, arguments, mask=sorted(before))
    log(f"real ({reason})" if reason else "forked", arguments)
    if connection is None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.execv(python, [python, *arguments])

    def forward(number: int, _: object) -> None:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            return

    for number in names:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, names)
    answer = b""
    while len(answer) < 8:
        got = connection.recv(8 - len(answer))
        if not got:
            os._exit(113)  # the server is gone
        answer += got
    code = os.waitstatus_to_exitcode(int.from_bytes(answer, "little"))
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()

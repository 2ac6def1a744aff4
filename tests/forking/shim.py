"""Stands in for the interpreter: has a forked child do what is asked, and ends as the child does.

Runs without site-packages (`python -I -S`), since its own start must cost next to nothing. Signals
that it gets go to the child; when it is killed, the server kills the child. A start that a fork
could not equal becomes a real one: of options that are not known here, with more open files than
three, on a terminal, in another namespace than the server's, or when the server says so.

    shim.py SOCKET PYTHON ARGUMENTS...
"""

import array
import json
import os
import resource
import signal
import socket
import sys

LIMITS = ("RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_STACK")
NAMESPACES = ("net", "mnt", "pid", "user", "uts")
FORWARDED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCONT", "SIGTSTP")


def surroundings() -> dict[str, object]:
    """What a child inherits besides environment, directory and files, and a fork cannot change."""
    return {
        "namespaces": [os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES],
        "user": [os.getuid(), os.geteuid(), os.getgid()],
        "limits": [resource.getrlimit(getattr(resource, name)) for name in LIMITS],
        "processors": sorted(os.sched_getaffinity(0)),
        "niceness": os.nice(0),
        "ignored": sorted(ignored_signals()),
    }


def ignored_signals() -> list[int]:
    """The signals that a process started here would ignore (nohup), but for Python's own two."""
    own = (signal.SIGPIPE, signal.SIGXFSZ)
    numbers = [number for number in signal.valid_signals() if number not in own]
    return [int(number) for number in numbers if signal.getsignal(number) == signal.SIG_IGN]


def is_plain() -> bool:
    """Whether nothing but three files, none a terminal, is open."""
    if any(os.isatty(number) for number in range(3)):
        return False
    # The listing itself is open while it is read.
    opened = [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]
    return len(opened) <= 1


def ask(path: str, arguments: list[str]) -> tuple[socket.socket, int] | None:
    """A connection to the server and the child's process number; None if it has to be real."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:
        return None
    asked = {
        "arguments": arguments,
        "environ": dict(os.environ),
        "directory": os.getcwd(),
        "umask": os.umask(0o022),
        "surroundings": surroundings(),
    }
    os.umask(int(str(asked["umask"])))
    content = json.dumps(asked, ensure_ascii=True).encode()
    files = array.array("i", [0, 1, 2])
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)]
    connection.sendmsg([len(content).to_bytes(8, "little")], ancillary)
    connection.sendall(content)
    answer = connection.recv(8)
    if len(answer) < 8 or not (process := int.from_bytes(answer, "little")):
        connection.close()
        return None
    return connection, process


def main() -> None:
    """Start, forward, wait, and end in the same way."""
    path, python, *arguments = sys.argv[1:]
    # Before the server is asked: a signal in between must not get lost.
    names = [getattr(signal, name) for name in FORWARDED]
    signal.pthread_sigmask(signal.SIG_BLOCK, names)
    started = ask(path, arguments) if is_plain() else None
    if started is None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, names)
        os.execv(python, [python, *arguments])
    connection, process = started

    def forward(number: int, _: object) -> None:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            return

    for number in names:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, names)
    for number in range(3):
        os.close(number)  # a reader of the child's output sees its end when the child ends
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

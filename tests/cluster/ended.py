"""Jobs that do not end well; a process of their own imports them."""

import os
import signal
import time

from toolkit.base.errors import BadInput, RunFailed


def killed() -> None:
    print("step 3 of 20", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out


def wrong() -> None:
    raise BadInput("steps=0: at least 1")


def failed() -> None:
    raise RunFailed("none of 30 questions is left")


def broken() -> None:
    print("reads what is there", flush=True)
    raise ZeroDivisionError("an error that nobody foresaw")


def late() -> None:
    print("begins", flush=True)
    time.sleep(3600)

"""A door of the toolkit under an audit hook that lists every class which is unpickled.

usage: audited.py DOOR ARGUMENTS ...      ("pickle" as the door: it unpickles a file)
"""

import importlib
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any

found: list[str] = []


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Remember who unpickles what."""
    if event == "pickle.find_class":
        callers = [frame.filename for frame in traceback.extract_stack()[:-1]]
        name = ".".join(map(str, arguments[-2:]))
        found.append(f"UNPICKLED {name} in {callers[-1]}, called from {callers[-2:]}")


def main(door: str, *arguments: str) -> int:
    """Run the door's main; print what was found."""
    sys.addaudithook(hook)
    if door == "pickle":
        pickle.loads(Path(arguments[0]).read_bytes())
        code = 0
    else:
        code = importlib.import_module(f"toolkit.{door}").main(list(arguments))
    print("\n".join([*found, f"AUDITED {door}"]), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Packages that not every installation has. Imports none of them."""

import importlib.util

from toolkit.base.errors import BadInput


def need_package(name: str, *, of: str) -> None:
    """Raise `BadInput` when a package is missing that `of` needs."""
    if importlib.util.find_spec(name) is None:
        raise BadInput(f"{of} needs {name}: pip install {name}")

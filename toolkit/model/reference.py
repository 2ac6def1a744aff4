"""What can be said of a model's name or folder before torch is imported, which takes seconds.

Knows names. Refuses to know weights, and imports neither torch nor transformers.
"""

from pathlib import Path

from toolkit.settings.model_source import is_adapter, resolve_model


def check_reference(reference: str) -> None:
    """Raise `BadInput` for what is neither a model nor an adapter that could be merged into one."""
    if not is_adapter(Path(reference)):
        resolve_model(reference)

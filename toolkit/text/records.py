"""What reading a file gives: documents, rejected rows, and damage. Knows no file."""

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from toolkit.base.errors import BadInput


@dataclass(frozen=True)
class Article:
    """A document: its text is plain prose, paragraphs separated by one newline. `lacks_id`: its row
    could have had an id, but has none, so that file and row are its id."""

    id: str
    title: str
    url: str
    text: str
    lacks_id: bool = False


@dataclass(frozen=True)
class Rejected:
    """A row that gives no document.

    If `is_bad`, something is wrong with the row: it is listed in the quarantine, and too many such
    rows fail the job. Otherwise it is left out on purpose, like a redirect, and only counted.
    """

    reason: str
    is_bad: bool


class Damaged(ValueError):
    """A file cannot be read, or not any further; the message says what would help."""


@contextlib.contextmanager
def read_errors() -> Iterator[None]:
    """Turn the errors of readers and decompressors into `Damaged`."""
    try:
        yield
    except (BadInput, Damaged):
        raise
    except EOFError as error:
        raise Damaged("ends too early; copy or download it again") from error
    except (OSError, ValueError, zlib.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise Damaged(f"is damaged or of another kind ({reason})") from error

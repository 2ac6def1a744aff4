"""The digest that a JSON document holds of itself, so that an edit by hand is noticed.

Knows which key holds the digest. Refuses to know the other keys and the file.
"""

from collections.abc import Mapping
from typing import Any

from toolkit.base.files import digest_of

SELF_DIGEST = "manifest_sha256"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The document with its own digest in it."""
    return {**content, SELF_DIGEST: content_digest(content)}


def is_sealed(document: Mapping[str, Any]) -> bool:
    """Whether a document holds its own digest and has not been changed since `sealed` made it."""
    return bool(document.get(SELF_DIGEST) == content_digest(document))


def content_digest(manifest: Mapping[str, Any]) -> str:
    """The digest of all keys but `manifest_sha256`, which is where it is stored."""
    return digest_of({key: value for key, value in manifest.items() if key != SELF_DIGEST})

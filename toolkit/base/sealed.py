"""The digest that a JSON document holds of itself: whoever edits it by hand is found out.

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
    """Whether a document holds its own digest, and is as it was when it got it."""
    return bool(document.get(SELF_DIGEST) == content_digest(document))


def content_digest(manifest: Mapping[str, Any]) -> str:
    """What `manifest_sha256` says of all other keys."""
    return digest_of({key: value for key, value in manifest.items() if key != SELF_DIGEST})

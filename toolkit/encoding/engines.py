"""Does another engine make the same vectors of a model?  `toolkit.verify MODEL --against ENGINE`

Knows how to ask the other engines, each in a process of its own or by its server's URL, and how to
compare two tables of vectors. Refuses to know how an engine computes (`engine_worker`). Shapes: N
texts, D width.
"""

import dataclasses
import http.client
import json
import subprocess
import sys
import tempfile
import textwrap
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.console import at_work
from toolkit.base.errors import BadInput, did_you_mean
from toolkit.encoding import engine_worker
from toolkit.encoding.formats import Vectors, unit_length
from toolkit.model.plain_path import LEAST_COSINE, MOST_STRETCH, nearness

# Of many lengths and scripts, and all shorter than the limits of the engines.
TEXTS = (
    "canal",
    "A bridge carries the railway over the river.",
    "a bridge carries the railway over the river",
    "Which court decides when two states disagree about a border?",
    "The tenant shall pay the rent on or before the first day of each month.",
    "Die Brücke trägt die Eisenbahn über den Fluss.",
    "Le pont porte le chemin de fer au-dessus de la rivière.",
    "Мост несёт железную дорогу через реку.",
    "铁路桥横跨河流。",
    "يحمل الجسر السكة الحديدية فوق النهر",
    "def area(radius):\n    return 3.14159 * radius ** 2\n",
    "Revenue rose 4.7 % to $1,203 million; costs fell by 12 basis points (2025: 31.2 %).",
    "  spaces   in front,\tand a tab  ",
    "Why? " * 20,
    "The chemist poured the acid slowly into a tall beaker, and wrote down what she saw. " * 8,
    "Water boils at a lower temperature on a mountain, since the air weighs less upon it. " * 12,
)
TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16"}
SERVERS = ("tei", "vllm")
NAMES = tuple(dict.fromkeys((*engine_worker.ENGINES, *SERVERS)))
BATCH_ROWS = 16
TIMEOUT_S = 600


@dataclasses.dataclass(frozen=True)
class Engine:
    """An engine, and the Python that has it or the URL of its server."""

    name: str
    place: str

    @property
    def is_server(self) -> bool:
        """Whether it is asked over HTTP."""
        return self.place.startswith(("http://", "https://"))


class NotInstalled(Exception):
    """The engine is not there."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How near the vectors of two engines are: the least cosine and its text's number, the largest
    difference of two numbers of unit vectors, the largest relative difference of lengths, and
    whether only the other engine's vectors have length 1."""

    least_cosine: float
    worst: int
    largest_difference: float
    stretch: float
    is_normalized: bool

    def is_same(self, dtype: str) -> bool:
        """Whether the two are equal but for the rounding of `dtype`. Vectors that only the other
        engine normalises are equal when their directions are."""
        same_length = self.is_normalized or self.stretch <= MOST_STRETCH[dtype]
        return self.least_cosine >= LEAST_COSINE[dtype] and same_length

    def told(self, texts: Sequence[str]) -> str:
        """The comparison as a line for people, with the text that differs most."""
        lengths = f"lengths differ by up to {self.stretch:.1e}"
        if self.is_normalized:
            lengths = "normalised there, not here"
        where = textwrap.shorten(texts[self.worst], 40, placeholder="...")
        return (
            f"{len(texts):,} texts, least cosine {self.least_cosine:.7f} ({where!r}), largest "
            f"difference {self.largest_difference:.1e} of unit vectors, {lengths}"
        )


def parse_engine(text: str) -> Engine:
    """An engine from "NAME", "NAME=PYTHON" or "NAME=URL". Raises `BadInput` for one that is not
    known, and for a server without its URL."""
    name, _, place = text.strip().partition("=")
    if name not in NAMES:
        known = ", ".join(NAMES)
        near = did_you_mean(name, NAMES)
        raise BadInput(f"--against {text}: no such engine; known: {known}{near}")
    peer = Engine(name, place or sys.executable)
    if peer.is_server and name not in SERVERS:
        raise BadInput(f"--against {text}: {name} has no server; give {name} or {name}=PYTHON")
    if not peer.is_server and name not in engine_worker.ENGINES:
        raise BadInput(f"--against {text}: give the URL of its server, {name}=http://HOST:PORT")
    if place and not peer.is_server and not Path(place).is_file():
        raise BadInput(f"--against {text}: {place} is no Python; give {name}=VENV/bin/python")
    return peer


def vectors_of(
    peer: Engine, *, model: str, texts: Sequence[str], dtype: str, device: str
) -> tuple[str, Vectors]:
    """The engine's version and its vectors (N, D). Raises `NotInstalled`, and `BadInput` when it
    cannot use the model or answers something else."""
    with at_work(f"verify: {peer.name} encodes {len(texts):,} texts"):
        if peer.is_server:
            version, found = _from_server(peer, texts=texts)
        else:
            request = {"engine": peer.name, "model": model, "texts": list(texts)}
            request |= {"dtype": TORCH_NAMES[dtype], "device": device}
            version, found = _from_process(peer, request=request)
    try:
        vectors = np.asarray(found, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{peer.name}: answered something else than vectors: {error}") from error
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise BadInput(
            f"{peer.name}: answered {vectors.shape} numbers for {len(texts)} texts instead of a "
            "vector for each"
        )
    return version, vectors


def compare(ours: Vectors, theirs: Vectors) -> Agreement:
    """How near two tables (N, D) are. Raises `BadInput` when their widths differ."""
    if ours.shape != theirs.shape:
        raise BadInput(f"its vectors have {theirs.shape[1]} numbers, ours {ours.shape[1]}")
    cosine_N, stretch_N = nearness(theirs, ours)
    # A vector that is no number is like none.
    cosine_N = np.nan_to_num(cosine_N, nan=-1.0)
    difference = np.abs(unit_length(ours) - unit_length(theirs))
    are_units = [
        bool(np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-2))
        for vectors in (ours, theirs)
    ]
    return Agreement(
        least_cosine=float(cosine_N.min()),
        worst=int(cosine_N.argmin()),
        largest_difference=float(difference.max()),
        stretch=float(stretch_N.max()),
        is_normalized=are_units[1] and not are_units[0],
    )


def _from_process(peer: Engine, *, request: dict[str, Any]) -> tuple[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        asked, out = Path(folder) / "request.json", Path(folder) / "vectors.npz"
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = [peer.place, str(Path(engine_worker.__file__)), str(asked), str(out)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False
            )
        except OSError as error:
            raise BadInput(f"{peer.name}: {peer.place} is no Python: {error}") from error
        if done.returncode == engine_worker.NOT_INSTALLED:
            raise NotInstalled
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
            last = lines[-1].strip()[:300]
            raise BadInput(f"{peer.name}: cannot use {request['model']}: {last}")
        try:
            with np.load(out, allow_pickle=False) as found:
                return str(found["version"]), found["vectors"]
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(f"{peer.name}: {peer.place} has written no vectors: {error}") from error


def _from_server(peer: Engine, *, texts: Sequence[str]) -> tuple[str, Any]:
    """Its model, dtype and device are those that it was started with."""
    try:
        vectors: list[Any] = []
        is_tei = peer.name == "tei"
        if is_tei:
            about = _call(peer, "/info")
            version = f"{about.get('version', '')} with {about.get('model_id', '?')}"
        else:
            served = _call(peer, "/v1/models")["data"][0]["id"]
            version = f"with {served}"
        for start in range(0, len(texts), BATCH_ROWS):
            some = list(texts[start : start + BATCH_ROWS])
            if is_tei:
                body = {"inputs": some, "normalize": False, "truncate": True}
                vectors += _call(peer, "/embed", body)
            else:
                answer = _call(peer, "/v1/embeddings", {"model": served, "input": some})
                rows = sorted(answer["data"], key=lambda row: row["index"])
                vectors += [row["embedding"] for row in rows]
        return version.strip(), vectors
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise BadInput(f"{peer.name}: {peer.place} answers otherwise than documented") from error


def _call(peer: Engine, path: str, body: dict[str, Any] | None = None) -> Any:
    url = peer.place.rstrip("/") + path
    data = None if body is None else json.dumps(body).encode()
    try:
        # `is_server` has seen that the scheme is http or https.
        request = urllib.request.Request(  # noqa: S310
            url, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            return json.load(answer)
    except urllib.error.HTTPError as error:
        told = error.read(300).decode(errors="replace")
        raise BadInput(f"{peer.name}: {url}: {error.code} {told}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise BadInput(f"{peer.name}: {url}: {error}") from error

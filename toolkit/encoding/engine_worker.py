"""The vectors that another engine makes of a model:  PYTHON engine_worker.py REQUEST.json OUT.npz

Knows how each engine is asked for vectors as its users ask. Imports nothing of this toolkit, so
that a Python of another environment can run it: llm2vec 0.2.3 needs transformers 4.44. OUT.npz has
`version` and `vectors`, float32 (N, D).
"""

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

NOT_INSTALLED = 3  # the exit code
BATCH_ROWS = 8


def sentence_transformers(request: dict[str, Any]) -> tuple[str, Any]:
    """Its version, and what `SentenceTransformer(folder).encode(texts)` gives."""
    torch, library, transformers = (
        importlib.import_module(name) for name in ("torch", "sentence_transformers", "transformers")
    )
    name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    model = library.SentenceTransformer(
        request["model"],
        device=request["device"],
        model_kwargs={name: getattr(torch, request["dtype"])},
    )
    vectors = model.encode(request["texts"], batch_size=BATCH_ROWS, show_progress_bar=False)
    return str(library.__version__), vectors


def llm2vec(request: dict[str, Any]) -> tuple[str, Any]:
    """Its version, and what `LLM2Vec.from_pretrained(folder).encode(texts)` gives."""
    metadata = importlib.import_module("importlib.metadata")
    torch, library = (importlib.import_module(name) for name in ("torch", "llm2vec"))
    model = library.LLM2Vec.from_pretrained(
        request["model"], torch_dtype=getattr(torch, request["dtype"])
    )
    model.eval()
    vectors = model.encode(
        request["texts"],
        batch_size=BATCH_ROWS,
        show_progress_bar=False,
        device=request["device"],
    )
    return str(metadata.version("llm2vec")), vectors.float().numpy()


def vllm(request: dict[str, Any]) -> tuple[str, Any]:
    """Its version, and what `LLM(folder, runner="pooling").embed(texts)` gives. Written after its
    documentation of 2026; it was not run."""
    library = importlib.import_module("vllm")
    model = library.LLM(
        model=request["model"], runner="pooling", dtype=request["dtype"], enforce_eager=True
    )
    outputs = model.embed(request["texts"])
    return str(library.__version__), [output.outputs.embedding for output in outputs]


ENGINES: dict[str, Callable[[dict[str, Any]], tuple[str, Any]]] = {
    "sentence-transformers": sentence_transformers,
    "llm2vec": llm2vec,
    "vllm": vllm,
}


def main(arguments: Sequence[str]) -> int:
    """Write what an engine makes of the texts; returns the exit code."""
    request_file, out = arguments
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    name = request["engine"]
    if importlib.util.find_spec(name.replace("-", "_")) is None:
        return NOT_INSTALLED
    numpy = importlib.import_module("numpy")
    version, vectors = ENGINES[name](request)
    numpy.savez(out, version=version, vectors=numpy.asarray(vectors, dtype=numpy.float32))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

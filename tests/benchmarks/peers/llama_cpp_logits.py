"""Tokens and logits of llama.cpp for texts: FILE.gguf ASKED.json OUT.npz, in a Python of its own.

ASKED.json is a list of texts. OUT.npz has ids_0, logits_0, ids_1, ... with logits (T, V).
"""

import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama


def main() -> None:
    """Read every text from its begin, with no token added."""
    file, asked, out = sys.argv[1:]
    model = Llama(file, n_ctx=1024, n_batch=1024, logits_all=True, n_threads=2, verbose=False)
    found = {}
    for number, text in enumerate(json.loads(Path(asked).read_text())):
        ids = model.tokenize(text.encode(), add_bos=False, special=False)
        model.reset()
        model.eval(ids)
        found[f"ids_{number}"] = np.array(ids)
        found[f"logits_{number}"] = np.array(model.scores[: len(ids)], dtype=np.float32)
    np.savez(out, **found)


if __name__ == "__main__":
    main()

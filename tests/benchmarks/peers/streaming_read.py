"""One epoch of shuffled blocks through mosaicml-streaming: BLOCKS.npy OUT BATCH.

Prints tokens a second of reading alone, and seconds to resume in the middle.
"""

import json
import shutil
import sys
import time

import numpy as np
from streaming import MDSWriter, StreamingDataset


def main(blocks: str, out: str, batch: str) -> None:
    ids_NT = np.load(blocks, mmap_mode="r")
    shutil.rmtree(out, ignore_errors=True)
    columns = {"ids": f"ndarray:uint16:{ids_NT.shape[1]}"}
    with MDSWriter(out=out, columns=columns, size_limit=2**26) as writer:
        for row in ids_NT:
            writer.write({"ids": np.asarray(row)})
    rows = StreamingDataset(local=out, shuffle=True, batch_size=int(batch))
    num_tokens, found = 0, []
    began = time.perf_counter()
    for sample in rows:
        found.append(sample["ids"])
        if len(found) == int(batch):
            num_tokens += np.stack(found).size
            found = []
    seconds = time.perf_counter() - began
    state = rows.state_dict(num_samples=len(ids_NT) // 2, from_beginning=True)
    began = time.perf_counter()
    again = StreamingDataset(local=out, shuffle=True, batch_size=int(batch))
    again.load_state_dict(state)
    next(iter(again))
    print(
        json.dumps({"tokens_per_s": num_tokens / seconds, "resume_s": time.perf_counter() - began})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Run as one of several ranks: many trainings in turn, since importing takes longest.

usage: many.py RANK PLAN.json     (a list of {"ranks": W, "port": p, "arguments": [...]})

A training is for the ranks below its number; the others go on to the next.
"""

import json
import os
import sys
from pathlib import Path

import torch

from toolkit import train


def main(rank: int, plan: Path) -> None:
    """Raises `AssertionError` for a training that fails."""
    torch.set_num_threads(1)
    for one in json.loads(plan.read_text()):
        if rank >= one["ranks"]:
            continue
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": one["ranks"]}
        place |= {"LOCAL_WORLD_SIZE": one["ranks"], "MASTER_PORT": one["port"]}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        assert train.main(one["arguments"]) == 0, one


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

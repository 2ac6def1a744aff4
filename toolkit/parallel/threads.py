"""Work on a CPU side by side: several items at a time, each by its share of torch's threads.

Knows torch's threads. Refuses to know what is computed. An operator that all threads share has them
wait for each other at its end, some hundreds of times in a forward pass; whole items do not.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_LANES = 8  # each has the memory of an item's computation


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """What `work` returns of each item, in their order.

    `work` is called from several threads; a mode of torch (`inference_mode`) is set for a thread,
    so it sets its own. What it raises is raised here, and items that have not begun are left.
    """
    threads = torch.get_num_threads()
    lanes = min(threads, len(items), MOST_LANES)
    if lanes < 2:
        yield from map(work, items)
        return
    try:
        with ThreadPoolExecutor(
            lanes, initializer=torch.set_num_threads, initargs=(threads // lanes,)
        ) as pool:
            yield from pool.map(work, items)
    finally:
        # What a lane sets for itself is also what threads to come begin with.
        torch.set_num_threads(threads)

"""Work on a CPU side by side: several items at a time, each by its share of torch's threads.

Knows torch's threads. Refuses to know what is computed. An operator that all threads share has them
wait for each other at its end, some hundreds of times in a forward pass; whole items do not.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_LANES = 8  # each has the memory of an item's computation
_TURN = threading.RLock()  # `on_done` may come back here


def side_by_side(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    on_done: Callable[[Item], None],
    most: int = MOST_LANES,
) -> list[Result]:
    """What `work` returns of each item, in their order, at most so many at a time; `on_done` is
    called in this thread, in their order too.

    `work` is called from several threads; a mode of torch (`inference_mode`) is set for a thread,
    so it sets its own. What it raises is raised here, and items that have not begun are left.
    """
    if min(most, len(items)) > 1:
        # One at a time: two would have the same cores, and each other's number of threads.
        with _TURN:
            threads = torch.get_num_threads()
            lanes = min(most, len(items), threads)
            if lanes > 1:
                return _in_lanes(work, items, on_done=on_done, lanes=lanes, threads=threads)
    return _collected(map(work, items), items, on_done=on_done)


def _in_lanes(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    on_done: Callable[[Item], None],
    lanes: int,
    threads: int,
) -> list[Result]:
    share = threads // lanes
    try:
        with ThreadPoolExecutor(
            lanes, initializer=torch.set_num_threads, initargs=(share,)
        ) as pool:
            return _collected(pool.map(work, items), items, on_done=on_done)
    finally:
        # What a lane sets for itself is also what threads to come begin with.
        torch.set_num_threads(threads)


def _collected(
    results: Iterable[Result], items: Sequence[Item], *, on_done: Callable[[Item], None]
) -> list[Result]:
    found = []
    for item, result in zip(items, results, strict=True):
        found.append(result)
        on_done(item)
    return found

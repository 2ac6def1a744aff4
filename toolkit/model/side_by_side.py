"""Computes several items at a time on a CPU, each with its share of torch's threads.

Knows torch's threads. Refuses to know what is computed. When all threads share one operator, they
wait for each other at its end, hundreds of times in a forward pass; with whole items they do not.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_LANES = 8  # each needs the memory for computing one item
_TURN = threading.RLock()  # reentrant, because `on_done` may call `side_by_side` again


def side_by_side(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    on_done: Callable[[Item], None],
    most: int = MOST_LANES,
) -> list[Result]:
    """The results of `work` for all items, in order; at most `most` items are computed at a time.
    `on_done` is called in this thread, in the same order.

    `work` is called from several threads. torch's modes, such as `inference_mode`, hold for one
    thread only, so `work` must set its own. An error in `work` is raised here, and items that have
    not begun are skipped.
    """
    if min(most, len(items)) > 1:
        # One caller at a time: two would share the same cores, and change each other's number of
        # threads.
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
        # The number that a lane sets for itself also becomes the default of later threads.
        torch.set_num_threads(threads)


def _collected(
    results: Iterable[Result], items: Sequence[Item], *, on_done: Callable[[Item], None]
) -> list[Result]:
    collected = []
    for item, result in zip(items, results, strict=True):
        collected.append(result)
        on_done(item)
    return collected

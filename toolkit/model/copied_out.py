"""What goes to a GPU and comes from it, without a pause of the GPU before or after.

Knows one device and its queue of work. Refuses to know what is computed.
"""

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Made = TypeVar("Made")


def made_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """`make` of each item, in order, by a thread that is one item ahead of whoever takes them. What
    `make` raises is raised where its result is taken."""
    before: concurrent.futures.Future[Made] | None = None
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for item in items:
            begun = pool.submit(make, item)
            if before:
                yield before.result()
            before = begun
        if before:
            yield before.result()


def copied_out(
    work: Callable[[Item], Tensor], items: Iterable[Item]
) -> Iterator[tuple[Item, Tensor]]:
    """Each item with the result of `work` for it, on the CPU, in order.

    The work of the next item is queued before the copy of the last result is waited for. So the
    device always has something to do, and holds two results at most, however many items there are.
    """
    before: tuple[Item, Callable[[], Tensor]] | None = None
    for item in items:
        begun = item, start_copy(work(item))
        if before:
            yield before[0], before[1]()
        before = begun
    if before:
        yield before[0], before[1]()


def start_copy(result: Tensor) -> Callable[[], Tensor]:
    """Queue a copy of a GPU's tensor to the host; what is returned waits for it and gives it.

    The copy is in pinned memory: into other memory it would be made only after the device has done
    all that is queued. torch keeps freed pinned blocks for the next copies.
    """
    host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
    host.copy_(result, non_blocking=True)
    # blocking: the waiting thread sleeps, and leaves its core to those that read and write.
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(result.device))

    def arrived() -> Tensor:
        copied.synchronize()
        return host

    return arrived

"""What the C library does with the memory of tensors on a CPU.

Knows glibc's malloc; another C library is left as it is. Refuses to know what the tensors are.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_large_blocks() -> None:
    """Make malloc keep the memory of large tensors for the next ones.

    By default it returns each large block to the kernel, which must clear it for the next tensor.
    That took a tenth of the time of a forward pass over short texts, and more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """Make malloc return the memory that is free now. After many tensors of unusual sizes, it does
    not fit the next ones. Takes about 20 ms for 200 MiB."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)

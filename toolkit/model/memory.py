"""What the C library does with the memory of tensors on a CPU.

Knows glibc's malloc; another C library is left as it is. Refuses to know what the tensors are.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_large_blocks() -> None:
    """Have it keep the memory of large tensors for the next ones.

    It gives each back to the kernel, which has to clear it anew: of a forward pass over short texts
    that was a tenth of the time and more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """Have it give back what is free now: after many tensors of unusual sizes that does not serve
    the next ones. Takes some 20 ms for 200 MiB."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)

"""Makes the C library keep freed memory, which on a CPU it would return to the system after a step and request again."""

from __future__ import annotations

import ctypes

# Names and numbers of glibc's <malloc.h>. No buffer gets a mapping of its own, nothing at the end of the heap is returned,
# and all threads share that heap (heaps of other threads are limited to 64 MB).
_SETTINGS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_ARENA_MAX": (-8, 1)}


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep freed memory in this process. Returns False if the C library is another one.

    XLA's CPU backend allocates temporary buffers for each call and frees them after it. By default large buffers come from
    the system every time, and the page faults took 53 of the 145 ms of processor time of an update with 68 MB of buffers.
    Call this before the first computation. The process never shrinks afterwards.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, value) == 1 for name, value in _SETTINGS.values())

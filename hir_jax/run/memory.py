"""Keeping freed memory: on a CPU the C library would hand a step's buffers back to the system and ask for them again."""

from __future__ import annotations

import ctypes

# Names and numbers of glibc's <malloc.h>. No buffer gets a mapping of its own, nothing at the end of the heap is given
# back, and all threads share that heap (the others' heaps end at 64 MB).
_SETTINGS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_ARENA_MAX": (-8, 1)}


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep what is freed, for the whole process; False where the C library is another one.

    XLA's CPU backend allocates the temporary buffers of each call and frees them behind it. Large ones came fresh from
    the system every time, and touching their pages anew took 53 of the 145 ms of processor time of an update whose
    buffers are 68 MB. Call it before the first computation. The process stays as large as it once was.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, value) == 1 for name, value in _SETTINGS.values())

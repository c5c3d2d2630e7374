"""Memory of the process: what is freed stays at hand for what comes next."""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees, so that a step of training finds that of the last one again.

    The C library of most Linux systems gives large blocks back to the operating system as soon as they are freed, which
    clears every page of them anew at its next use. A training step frees and asks for the same blocks again and again:
    on convolutions two fifths of the processor time may go into it. The command ``hatrack`` and its workers call this;
    a program of one's own may, once, before it trains. No bit of any result changes. The process holds on to the most
    that it has used at once, and up to a third more (on the networks that were measured).

    Returns:
        Whether this C library can be told so. It is glibc's mallopt; elsewhere nothing happens.
    """
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}):
        return False
    library = ctypes.CDLL(None)
    taken = [library.mallopt(_M_MMAP_MAX, 0), library.mallopt(_M_TRIM_THRESHOLD, _MOST)]
    return all(taken)

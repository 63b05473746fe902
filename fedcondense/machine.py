"""What this machine computes with: its usual device, and threads, checked before they are started."""

from __future__ import annotations

import ctypes
import os
import sys

from fedcondense.errors import SettingError

__all__ = ["MOST_THREADS", "keep_memory", "set_threads", "usual_device"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))
"""More threads than this never help, and from some thousands on the process dies while torch starts them."""


def usual_device() -> str:
    """Return where this machine computes unless it is told where: a GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def set_threads(number: int) -> None:
    """Let torch compute with so many threads from here on.

    Raises:
        SettingError: There are none, or so many that starting them would end the process.
    """
    import torch

    if not 1 <= number <= MOST_THREADS:
        raise SettingError(f"{number} threads; needed: 1 to {MOST_THREADS} on this machine")
    torch.set_num_threads(number)


def keep_memory() -> None:
    """Let this process keep up to 1 GB of what it frees for what it allocates next.

    Left alone, glibc often hands the memory of each step of training back to the system, which clears it before it
    comes again: a third of the time of small batches on a CPU (experiments/speed.md). For processes of our own; a
    library leaves this to its caller. Nothing happens where there is no glibc, nor if a variable `MALLOC_...` of its is
    set.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # glibc's largest: both have to be set, or the other is tuned no more
        mallopt(_TRIM_THRESHOLD, 1 << 30)

"""What this machine computes with: its usual device, and threads, checked before they are started."""

from __future__ import annotations

import os

from fedcondense.errors import SettingError

__all__ = ["MOST_THREADS", "set_threads", "usual_device"]

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

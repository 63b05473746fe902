"""What this machine computes with: a device and threads, checked before anything is asked of them."""

from __future__ import annotations

import os
import re

from fedcondense.errors import SettingError

__all__ = ["MOST_THREADS", "pick_device", "set_threads"]

MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))
"""More threads than this never help, and from some thousands on the process dies while torch starts them."""
_NAMED = re.compile(r"cpu|mps|cuda(:\d{1,3})?")  # torch has others, which hold no numbers (meta) or lack operators


def pick_device(name: str | None) -> str:
    """Return the device that was asked for, or a GPU if there is one.

    Raises:
        SettingError: This machine has no such device.
    """
    import torch

    if not name:
        return "cuda" if torch.cuda.is_available() else "cpu"
    reason = "no device that this toolkit computes on"
    if _NAMED.fullmatch(name):
        try:
            torch.zeros(1, device=name).add_(1)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
        else:
            return name
    here = "cpu, cuda, cuda:N" if torch.cuda.is_available() else "cpu"
    raise SettingError(f"device {name!r} cannot be used ({reason}); on this machine: {here}")


def set_threads(number: int) -> None:
    """Let torch compute with so many threads from here on.

    Raises:
        SettingError: There are none, or so many that starting them would end the process.
    """
    import torch

    if not 1 <= number <= MOST_THREADS:
        raise SettingError(f"{number} threads; needed: 1 to {MOST_THREADS} on this machine")
    torch.set_num_threads(number)

"""What making a set costs beside CPU seconds, and which code made it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

import fedcondense

__all__ = ["code_version", "peak_memory"]

_PROCESS = Path("/proc/self")


@contextmanager
def peak_memory(device: str) -> Iterator[Callable[[], int | None]]:
    """Yield what tells the bytes that were held at the peak since the beginning: of a GPU, or of the whole process.

    None where the system does not tell: on a CPU only Linux forgets an earlier peak when it is asked to.
    """
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
        yield lambda: torch.cuda.max_memory_allocated(place)
        return
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        yield lambda: None
    else:
        yield _high_water


def _high_water() -> int | None:
    lines = (_PROCESS / "status").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


@cache
def code_version() -> str:
    """Return the version of this package, of a checkout with its commit, such as ``"0.1.0+1a2b3c4d5e6f"``.

    ``-dirty`` behind it: files were changed since.
    """
    root = Path(fedcondense.__file__).parent.parent
    commit = ""
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        try:
            commit = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            commit = "unknown"  # a checkout without git: its version alone would say more than is known
    return fedcondense.__version__ + (f"+{commit}" if commit else "")

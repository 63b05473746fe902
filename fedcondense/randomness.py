"""Random streams: everything is drawn on the CPU from one root seed, a child stream for each purpose.

So a client and a server, on any device, share draws by sharing a seed, and no draw depends on how many came before it
for another purpose. Privacy noise is the exception: it never comes from here.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from fedcondense.plain import whole_number

__all__ = ["batches", "child_seed", "draw_seed", "stream"]


def child_seed(root: int, *purpose: str | int) -> int:
    """Return a seed in [0, 2**63) that `root` and the purpose determine on any machine."""
    text = "/".join(map(str, (whole_number(root, "seed", -(2**63)), *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(root: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator seeded with `child_seed`."""
    return torch.Generator().manual_seed(child_seed(root, *purpose))


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed in [0, 2**62)."""
    return int(torch.randint(2**62, (), generator=generator))


def batches(number: int, size: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    """Draw `steps` batches of `size` indices below `number` (all of them if fewer), each pass in a new order."""
    size = min(size, number)
    passes = -(-steps * size // number)
    order = torch.cat([torch.randperm(number, generator=generator) for _ in range(passes)])
    return list(order[: steps * size].split(size))

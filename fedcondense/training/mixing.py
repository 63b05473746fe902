"""CutMix: images of a step get a rectangle of each other (Yun et al., ICCV 2019, https://arxiv.org/abs/1905.04899)."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

__all__ = ["cutmix", "draw_box"]


def draw_box(likely: float, images: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw partners for `count` images and the rectangle that they give, of a share uniform in [0, 1]; often none.

    Args:
        likely: How likely there is a rectangle at all.
        images: (N, C, H, W), for their size.
        count: Images of the step, B.
        generator: On the CPU.

    Returns:
        Partners (B,), and the box (4,): its first row and column, and those behind its last; both int64.
    """
    single = partial(torch.rand, generator=generator, dtype=torch.float32, device="cpu")
    if not likely or float(single(())) >= likely:
        return torch.arange(count, device="cpu"), torch.zeros(4, dtype=torch.int64, device="cpu")
    size = torch.tensor(images.shape[-2:], device="cpu")
    share, *centre = single(3).tolist()
    half = (size.float() * math.sqrt(share)).long() // 2
    middle = (size.float() * torch.tensor(centre, dtype=torch.float32, device="cpu")).long()
    first, behind = (middle - half).clamp_min(0), torch.minimum(middle + half, size)
    return torch.randperm(count, generator=generator), torch.cat([first, behind])


def cutmix(images: Tensor, targets: Tensor, partners: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Return a batch (B, C, H, W) with the rectangle of each image's partner, and targets (B, K) mixed by area."""
    height, width = images.shape[-2:]
    top, left, bottom, right = box
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside = ((rows >= top) & (rows < bottom)).unsqueeze(1) & ((columns >= left) & (columns < right))
    share = inside.sum().to(targets.dtype) / (height * width)
    return images.where(~inside, images[partners]), targets.lerp(targets[partners], share)

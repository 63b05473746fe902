"""What a buffer replays, as tensors in the stream's values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedcondense.avalanche.stream import Range, label_and_task
from fedcondense.memory import Memory

__all__ = ["Decoded", "decode"]


class Decoded(NamedTuple):
    """The images that a buffer replays, as tensors."""

    images: Tensor  # (N, C, H, W), float32, in the stream's values
    targets: Tensor  # (N, K) probabilities over `labels`
    labels: Tensor  # (K,) int64, the stream's label of each column
    tasks: Tensor  # (K,) int64
    mean: Tensor  # (C,) of the stream: what the augmentation takes for grey
    std: Tensor  # (C,)


def decode(memory: Memory, span: Range | None) -> Decoded | None:
    """Return all that a memory replays, or None if that is nothing.

    Args:
        memory: Its groups are named by `group_name`.
        span: What its bytes stand for in the stream; None: there was no stream yet.
    """
    synthetic, spec = memory.synthetic, memory.spec
    if synthetic is None or spec is None or span is None:
        return None
    images, targets = synthetic.pixels()
    pairs = torch.tensor([label_and_task(name) for name in synthetic.classes])
    column = torch.tensor(spec.mean).view(1, -1, 1, 1), torch.tensor(spec.std).view(1, -1, 1, 1)
    mean = span.to_stream(column[0]).flatten()
    std = (span.to_stream(column[0] + column[1]).flatten() - mean).abs()
    return Decoded(span.to_stream(images), targets, pairs[:, 0], pairs[:, 1], mean, std)

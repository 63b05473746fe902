"""A set as torch and notebooks know things: a map-style Dataset, tensors on a device, a picture."""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

if TYPE_CHECKING:
    from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["as_tensors", "labels_of", "shown"]

_MOST = 100  # images of a class in a notebook's picture


def as_tensors(synthetic: SyntheticSet, device: torch.device | str) -> TensorDataset:
    """Return all images in [0, 1] and their labels as a data set on a device."""
    images, targets = synthetic.pixels(device)
    return TensorDataset(images, labels_of(targets))


def labels_of(targets: Tensor) -> Tensor:
    """Return places among the classes, (N,) int64, or where some label is soft the probabilities (N, K)."""
    is_hard = bool((targets.max(1).values == 1).all())
    return targets.argmax(1) if is_hard else targets


def shown(synthetic: SyntheticSet) -> str:
    """Return HTML with what the set is and a picture of it: a row for each class."""
    from fedcondense.sets.pictures import drawn, png

    picture = base64.b64encode(png(drawn(synthetic, most=_MOST))).decode("ascii")
    return f"<p>{html.escape(repr(synthetic))}</p><img alt='images by class' src='data:image/png;base64,{picture}'>"

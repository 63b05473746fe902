"""A set as torch and notebooks know things: a map-style Dataset, tensors on a device, a picture."""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

if TYPE_CHECKING:
    from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["as_tensors", "item", "shown"]

_MOST = 100  # images of a class in a notebook's picture


def item(synthetic: SyntheticSet, index: Any) -> tuple[Tensor, Tensor]:
    """Return an image (C, H, W) in [0, 1] and its label: a class's number, or where labels are soft probabilities."""
    images, targets = synthetic.pixels()
    if index < -len(images) or index >= len(images):
        raise IndexError(f"image {index} of a set of {len(images)}")
    return images[index], _labels(targets)[index]


def as_tensors(synthetic: SyntheticSet, device: torch.device | str) -> TensorDataset:
    """Return all images and labels as a data set on a device, as `item` gives them."""
    images, targets = synthetic.pixels(device)
    return TensorDataset(images, _labels(targets))


def _labels(targets: Tensor) -> Tensor:
    is_hard = bool((targets.max(1).values == 1).all())
    return targets.argmax(1) if is_hard else targets


def shown(synthetic: SyntheticSet) -> str:
    """Return HTML with what the set is and a picture of it: a row for each class."""
    from fedcondense.sets.pictures import drawn, png

    picture = base64.b64encode(png(drawn(synthetic, most=_MOST))).decode("ascii")
    return f"<p>{html.escape(repr(synthetic))}</p><img alt='images by class' src='data:image/png;base64,{picture}'>"

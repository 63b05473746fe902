"""The images of a set, class by class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["images_by_class"]


def images_by_class(synthetic: SyntheticSet) -> dict[str, Tensor]:
    """Return the decoded images (N, C, H, W) in [0, 1] of each class that has some, by the class's name.

    An image with a soft label counts for its most likely class.
    """
    batch = synthetic.pixels()
    labels = batch.targets.argmax(1)
    return {synthetic.classes[k]: batch.images[labels == k] for k in labels.unique().tolist()}

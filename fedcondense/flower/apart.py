"""Records that a site keeps apart before any question sees its data, to say how good a network is on them.

A record is on one side by what it is, whatever other records there are and wherever it lies: it stays on its side when
a site gets more records or another name, equal records go together, and one that two sites hold is apart at both.
Otherwise what was condensed in one round would be evaluated on in the next.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from fedcondense.data import Data

__all__ = ["HANDFUL", "is_apart"]

HANDFUL = 5
"""Records of a class below which none is kept apart."""


def is_apart(data: Data, share: float, least: int = HANDFUL) -> Tensor:
    """Say which records are kept apart: of each class those whose SHA-256 is smallest.

    Args:
        data: A site's.
        share: Of each class, in [0, 1]; rounded down.
        least: How many of a class are learned from in any case: classes of no more keep none apart.

    Returns:
        (N,) bool, on the data's device. A group of equal records at the edge of the share is not kept apart, so that
        none of it is on both sides.
    """
    apart = torch.zeros(len(data), dtype=torch.bool)
    if not share:
        return apart.to(data.device)
    images, labels = data.images.cpu().contiguous(), data.labels.cpu()
    for label, count in enumerate(data.counts.tolist()):
        most = min(int(share * count + 1e-9), count - least)  # 0.1 of 30 is 3, whatever floats make of it
        if most <= 0:
            continue
        rows = (labels == label).nonzero().flatten()
        digests = [hashlib.sha256(image.numpy().data).digest() for image in images[rows]]
        edge = sorted(digests)[most]  # the first that stays: what equals it stays, too
        apart[rows] = torch.tensor([digest < edge for digest in digests])
    return apart.to(data.device)

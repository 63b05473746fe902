"""Selections of real images: the controls that a distilled set has to beat at equal bytes, and sometimes does not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.budgets import Budget
from fedcondense.contract import Parametrization
from fedcondense.data.shares import images_per_class
from fedcondense.errors import look_up
from fedcondense.parametrizations import MultiFormation, Pixels
from fedcondense.plain import whole_number
from fedcondense.progress import reporting
from fedcondense.randomness import child_seed, stream
from fedcondense.sets.codecs import RAW
from fedcondense.sets.fitting import Within, amount_of, fit_within
from fedcondense.sets.parts import Part, Record, to_storage
from fedcondense.sets.synthetic import SyntheticSet

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["SELECTIONS", "select", "select_quietly"]

_ROOM = 1.02  # more images than random ones take are chosen: what does not fit is left out
_LOG = logging.getLogger(__name__)

Chooser = Callable[[Tensor, int, int], Tensor]
"""Takes one class's pixels (N, D) in [0, 1], how many to choose and a seed; returns indices (M,), M <= N."""


def random(pixels: Tensor, count: int, seed: int) -> Tensor:
    """Choose uniformly, without replacement."""
    return torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))[:count]


def herding(pixels: Tensor, count: int, seed: int) -> Tensor:
    """Choose greedily so that the mean of the chosen stays close to the class mean (Welling, ICML 2009; iCaRL).

    The features are the pixels: any trained network would be one more thing to send or to train.
    """
    mean = pixels.mean(0)
    total = torch.zeros_like(mean)
    chosen: list[int] = []
    free = torch.ones(len(pixels), dtype=torch.bool)
    squares = pixels.square().sum(1)
    for k in range(min(count, len(pixels))):
        wish = (k + 1) * mean - total
        distance = squares - 2 * pixels @ wish  # the squared distance to the wish, up to a constant
        best = int(distance.masked_fill(~free, torch.inf).argmin())
        chosen.append(best)
        free[best] = False
        total = total + pixels[best]
    return torch.tensor(chosen, dtype=torch.int64)


def k_center(pixels: Tensor, count: int, seed: int) -> Tensor:
    """Choose greedily what is farthest from all that is chosen, from the image nearest to the class mean on.

    Sener and Savarese, ICLR 2018, https://arxiv.org/abs/1708.00489, on pixels: the largest distance of an image to its
    nearest chosen one is at most twice the smallest possible. It takes outliers early. `seed` plays no part.
    """
    squares = pixels.square().sum(1)
    chosen = [int((pixels - pixels.mean(0)).square().sum(1).argmin())]
    nearest = torch.full_like(squares, torch.inf)  # the squared distance of each image to the chosen
    while len(chosen) < min(count, len(pixels)):
        newest = pixels[chosen[-1]]
        nearest = torch.minimum(nearest, squares - 2 * pixels @ newest + newest.square().sum())
        nearest[chosen] = -torch.inf  # images that are equal are at no distance, and still count as two
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen, dtype=torch.int64)


def k_means(pixels: Tensor, count: int, seed: int) -> Tensor:
    """Choose the real image nearest to each centre of k-means (scikit-learn) in pixel space."""
    from sklearn.cluster import KMeans

    count = min(count, len(pixels))
    centres = KMeans(count, n_init=1, max_iter=30, random_state=seed % 2**31).fit(pixels.numpy()).cluster_centers_
    distance = torch.cdist(torch.from_numpy(centres).float(), pixels)
    chosen: list[int] = []
    for row in distance:  # two centres may be nearest to one image
        row[chosen] = torch.inf
        chosen.append(int(row.argmin()))
    return torch.tensor(chosen, dtype=torch.int64)


SELECTIONS: dict[str, tuple[Chooser, Parametrization]] = {
    "random": (random, Pixels()),
    "herding": (herding, Pixels()),
    "k-center": (k_center, Pixels()),
    "k-means": (k_means, Pixels()),
    "half-resolution": (random, MultiFormation(2)),
}
"""Who chooses, and how what was chosen is stored: half resolution holds four times as many images in the same bytes."""


@in_own_state
def select(
    data: Data,
    ipc: int | str | Within | None = None,
    method: str = "random",
    seed: int = 0,
    limit: float = 1.0,
    *,
    budget: int | str | Budget | Within | None = None,
    codec: str | None = None,
) -> SyntheticSet:
    """Choose real images of each class, as a set of the same kind and bytes as a condensed one.

    Whoever receives it sees records: a control for experiments, not for private data.

    Args:
        data: The real images; classes may be absent or of any size.
        ipc: Byte budget per class, counted in uncompressed images; or a budget in bytes with its unit, ``"20 kB"``.
            None: 10, if there is no budget.
        method: A name in `SELECTIONS`.
        seed: All that is random follows from it.
        limit: The largest share of a class's records whose bytes its images may take.
        budget: What the set's file may take, room for the evaluation of three networks included: as many images are
            chosen as fit.
        codec: How images are stored, by name (`CODECS`); None: raw.

    Raises:
        SettingError: An unknown method or codec, an `ipc` or `limit` that cannot work, or a budget that is too small
            for one image of each class.
    """
    amount = amount_of(ipc, budget, codec)
    if isinstance(amount, Within):
        return _select_within(data, replace(amount, codec=amount.codec or RAW), method, seed, limit)
    if warning := images_per_class(data, amount, limit).warning:
        _LOG.warning(warning)
    return select_quietly(data, amount, method, seed, limit).recode(codec)


def _select_within(data: Data, within: Within, method: str, seed: int, limit: float) -> SyntheticSet:
    """Choose as many images as fit: their number by what random ones take, and the last of them by the bound itself."""
    codec = within.codec or RAW
    look_up("selection", method, SELECTIONS)
    probe = "half-resolution" if method == "half-resolution" else "random"
    evaluation = within.evaluation(data.spec.name)
    largest = max(images_per_class(data, int(max(data.counts.tolist(), default=0)) or 1, limit).images)
    ipc, sizes = 1, {0: 0.0}
    while ipc not in sizes:
        tried = select_quietly(data, ipc, probe, seed, limit).recode(codec)
        sizes[ipc] = (tried if evaluation is None else tried.with_evaluation(evaluation)).nbytes
        before = max(n for n in sizes if n < ipc)
        each = max((sizes[ipc] - sizes[before]) / (ipc - before), 1.0)
        wanted = ipc + (within.most - sizes[ipc]) / each
        ipc = max(1, min(largest, 4 * ipc, round(_ROOM * wanted)))
    chosen = select_quietly(data, ipc, method, seed, limit)
    return fit_within(chosen, within, codec)


@in_own_state
def select_quietly(data: Data, ipc: int, method: str, seed: int = 0, limit: float = 1.0) -> SyntheticSet:
    """As `select`, and the log is not told of classes that are too small for `ipc`."""
    began = time.monotonic()
    choose, parametrization = look_up("selection", method, SELECTIONS)
    spec = data.spec
    images, labels = [], []
    seed = whole_number(seed, "seed")
    by_class = data.per_class(None, stream(seed)).split(data.counts.tolist())
    with reporting(f"selecting from {spec.name}") as report:
        for c, stored in enumerate(images_per_class(data, ipc, limit).images):
            if not stored:
                continue
            pixels = data.images[by_class[c].to(data.device)].cpu().float() / 255
            wanted = parametrization.start_count(stored)
            with torch.autocast("cpu", enabled=False):  # the same choice at any precision
                chosen = choose(pixels.flatten(1), wanted, child_seed(seed, method, c))
            chosen = chosen.repeat(-(-wanted // len(chosen)))[:wanted]  # a class too small for its tiles repeats itself
            images.append(pixels[chosen])
            labels += [c] * wanted
            report((c + 1) / len(spec.classes))
    targets = F.one_hot(torch.tensor(labels), len(spec.classes)).float()
    codes, targets = parametrization.encode(torch.cat(images), targets)
    record = replace(Record.of(data, method, ipc, seed), start="real", seconds=round(time.monotonic() - began, 1))
    return SyntheticSet([Part(*to_storage(codes, targets, parametrization), parametrization, record)])

"""What images that are there already lack for some records: the default objective, where only the new images move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fedcondense.contract import Batch, Draw, Recipe
from fedcondense.objectives.features import FeatureObjective, FeatureRows
from fedcondense.objectives.mmd import KernelMeans, KernelRows, class_shares
from fedcondense.objectives.mmd_ridge import KernelMeansAndRidge
from fedcondense.objectives.ridge import RidgeRegression
from fedcondense.sources.passing import Passing

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["Residual", "ResidualRows"]

_AT_ONCE = 512  # fixed images that pass a network together


class ResidualRows(NamedTuple):
    """What a draw keeps: of the records, of the images that stay as they are, and of both together."""

    real: KernelRows
    fixed: FeatureRows  # (N, D) float16 and (N, K + L): K classes of the records, and L others
    between: Tensor  # (K,), the mean kernel value of a record and a fixed image of a class
    within: Tensor  # (K,), that of two fixed images
    share: Tensor  # (K,), of the records of a class


@dataclass(frozen=True, eq=False, repr=False)
class Residual(FeatureObjective):
    r"""Choose new images that together with fixed ones stand for the records of one owner and of all others.

    .. math:: \alpha \sum_c \big\lVert s_c (\mu_{r} - \mu_{u}) - w_c (\mu_{g} - \mu_{u}) \big\rVert_k^2
        + \frac{3}{2} \sum_m \pi_m \big\lVert \hat y_m - y_m \big\rVert^2

    - :math:`\mu_r, \mu_u, \mu_g` are the kernel means of class c (`KernelMeans`) over this owner's records r, the fixed
      images u and the new ones g; :math:`s_c` is the owner's share of the records of the class, :math:`w_c` that of
      the new images among all images. Fixed images stand for the records that others have, so this is the discrepancy
      between all records and all images. Of a class without fixed images both shares are 1: the plain discrepancy.
    - :math:`\hat y_m` is the prediction of one ridge regression (`RidgeRegression`) on fixed and new images of *all*
      classes: at this owner's records, and at the fixed images of the classes of which it has none, each of these
      classes with the weight of one of its own. New images are placed where records are taken for another class, which
      may be one that the owner knows by its fixed images alone.
    - :math:`\alpha` is as in `KernelMeansAndRidge`, by the number of all images.

    Features are those of networks that are trained on the fixed images (`Passing`), which know all classes, as no
    network does that an owner trains on its own records; nothing has to be sent for it. Without fixed images it is
    `KernelMeansAndRidge`. A step costs kernel values of the new images with all others, and a solve of all images;
    fixed images pass each network of the pool once.

    Args:
        images: (N, C, H, W), normalised; they stay as they are.
        targets: (N, K + L) probabilities: first the K classes of the records, in their order, then L others.
        share: (K,), which share of the records of each class is the owner's.
        plain: The objective whose terms and weights are taken.
        networks: How many networks are trained on the fixed images; 0: untrained ones are taken, as for `plain`.
    """

    images: Tensor
    targets: Tensor
    share: Tensor
    plain: KernelMeansAndRidge = field(default_factory=KernelMeansAndRidge)
    networks: int = 4

    separable: ClassVar[bool] = False

    def __repr__(self) -> str:
        return f"Residual({len(self.images)} images)"

    @property
    def recipe(self) -> Recipe:  # type: ignore[override]
        """That of `plain`, on networks that are trained on the fixed images if there are any."""
        plain = self.plain.recipe
        if not len(self.images) or not self.networks:
            return plain
        passing = partial(Passing, images=self.images, targets=self.targets, networks=self.networks)
        return replace(plain, steps=200, source=passing)

    @property
    def layer(self) -> str:  # type: ignore[override]
        """That of `plain`."""
        return self.plain.layer

    @property
    def per_class(self) -> int | None:  # type: ignore[override]
        """The real images of a class that `plain` asks for."""
        return self.plain.per_class

    @property
    def _kernel(self) -> KernelMeans:
        return cast(KernelMeans, self.plain.terms[0])

    def observe(self, draw: Draw, data: Data) -> ResidualRows:
        """Keep rows of records as `plain` does, and of the fixed images, augmented like those of their class."""
        real: KernelRows = self.plain.observe(draw, data)[0]
        classes, device = real.targets.shape[1], data.device
        alike = F.one_hot(self.targets.argmax(1) % classes, classes)  # the others take the augmentation of one of these
        pieces = zip(self.images.split(_AT_ONCE), alike.split(_AT_ONCE), strict=True)
        rows = [self.rows(draw, Batch(images.to(device), like.to(device))) for images, like in pieces if len(images)]
        with torch.autocast(device.type, enabled=False):
            targets = self.targets.to(device, torch.float32)
            fixed = FeatureRows(torch.cat([real.rows[:0], *(row.half() for row in rows)]), targets)
            own, full = targets[:, :classes], fixed.rows.float()
            r, u = class_shares(real.targets), class_shares(own)
            between = self._kernel.means(real.rows.float(), r, full, u, real.spread)
            within = self._kernel.means(full, u, full, u, real.spread)
        return ResidualRows(real, fixed, between, within, self.share.to(device, torch.float32))

    def summarise(self, rows: Tensor, targets: Tensor) -> Any:
        """Keep the rows of records, as `plain` does."""
        return self.plain.summarise(rows, targets)

    def merge(self, pieces: Sequence[Any]) -> Any:
        """Put the rows of records together."""
        return self.plain.merge(pieces)

    def compare(self, observed: ResidualRows, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of new rows (N, D) with targets (N, K)."""
        fixed, rows = observed.fixed, rows.float()
        padded = F.pad(targets, (0, fixed.targets.shape[1] - targets.shape[1]))
        every = FeatureRows(torch.cat([fixed.rows.float(), rows]), torch.cat([fixed.targets, padded]))
        alpha, beta = self.plain.weigh((observed.real, every), every.targets)
        return alpha * self._discrepancy(observed, rows, targets) + beta * self._error(observed, every)

    def _discrepancy(self, observed: ResidualRows, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the squared distance between all records and all images, summed over the classes of both."""
        real, fixed = observed.real, observed.fixed
        old, new = (side[:, : targets.shape[1]].sum(0) for side in (fixed.targets, targets))
        r, u, g = (class_shares(side) for side in (real.targets, fixed.targets[:, : targets.shape[1]], targets))
        one = torch.ones_like(observed.share)
        s = torch.where(old > 0, observed.share, one)
        w = torch.where(old > 0, new / (old + new).clamp_min(torch.finfo(new.dtype).tiny), one)
        with_real = self._kernel.means(rows, g, real.rows.float(), r, real.spread)
        with_fixed = self._kernel.means(rows, g, fixed.rows.float(), u, real.spread)
        own = self._kernel.means(rows, g, rows, g, real.spread)
        known = s.square() * real.within + (w - s).square() * observed.within + 2 * s * (w - s) * observed.between
        squared = known + w.square() * own - 2 * w * (s * with_real + (w - s) * with_fixed)
        return (squared * ((real.targets.sum(0) > 0) & (new > 0))).sum()

    def _error(self, observed: ResidualRows, every: FeatureRows) -> Tensor:
        """Return half the mean squared error over records, and over the fixed images of classes without records."""
        real, fixed = observed.real, observed.fixed
        wanted = F.pad(real.targets, (0, fixed.targets.shape[1] - real.targets.shape[1]))
        held, present = wanted.sum(0) > 0, every.targets.sum(0) > 0
        each = len(wanted) / held.sum()  # what a class of the owner's weighs
        of_others = (class_shares(fixed.targets) * (present & ~held) * each).sum(1)
        weights = torch.cat([torch.ones_like(wanted[:, 0]), of_others])
        centre = (present | held).to(wanted.dtype)
        centre = centre / centre.sum()
        at = torch.cat([real.rows.float(), fixed.rows.float()])
        ridge = cast(RidgeRegression, self.plain.terms[1])
        predicted = ridge.predict(every.rows, every.targets - centre, at)
        missed = (predicted - (torch.cat([wanted, fixed.targets]) - centre)).square().sum(1)
        return (weights * missed).sum() / weights.sum() / 2

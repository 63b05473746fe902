"""What objectives on feature rows share: the pass over real data, the two-pass gradient, the sum of several."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from fedcondense.contract import Draw, Keeps, Objective, Recipe, Synthetic
from fedcondense.data.images import Batch
from fedcondense.deadline import check_time
from fedcondense.networks.passes import repeatable
from fedcondense.randomness import stream
from fedcondense.training.graphs import is_plain

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = [
    "ClassSums",
    "FeatureObjective",
    "FeatureRows",
    "Sum",
    "SumObjective",
    "capturable_on_features",
    "images_in_graph",
]

_REAL_AT_ONCE = 512  # real images that are augmented and summarised at once: they stay in the cache, at any class size


class FeatureObjective(Objective):
    """An objective that sees images only through the features of one network layer.

    A subclass is a frozen dataclass with the fields `layer` and `per_class`, and three functions of feature rows.
    """

    keeps: ClassVar[Keeps] = "rows"
    layer: str
    per_class: int | None  # real images of a class that a draw sees; None: all of them

    @abstractmethod
    def summarise(self, rows: Tensor, targets: Tensor) -> Any:
        """Return what is kept of real feature rows (N, D) with targets (N, K)."""

    @abstractmethod
    def merge(self, pieces: Sequence[Any]) -> Any:
        """Return what is kept of all rows, from what was kept of each piece."""

    @abstractmethod
    def compare(self, observed: Any, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of synthetic rows (N, D), differentiable in them and in the targets (N, K)."""

    def rows(self, draw: Draw, batch: Batch | Synthetic) -> Tensor:
        """Return the features of the augmented images, (N, D)."""
        images = draw.augment(batch.images, batch.targets.argmax(1))
        with repeatable(draw.network, draw.seed):  # the same for both branches, and each time that rows are taken
            return cast(Tensor, draw.network.features(images, self.layer))

    def observe(self, draw: Draw, data: Data) -> Any:
        """Draw real images of each class, and keep what `summarise` does of their features."""
        index = data.per_class(self.per_class, stream(draw.seed, "real"))
        pieces = []
        number = -(-len(index) // _REAL_AT_ONCE)
        for k in range(number):
            if draw.key is not None:  # others are a part of each step, with a source that may have trained for it
                check_time()
            batch = data.batch(index[k::number])  # of all classes, which batch norm is to see together
            rows = self.rows(draw, batch)
            with _full_precision(rows):
                pieces.append(self.summarise(rows, batch.targets))
        with _full_precision(rows):
            return self.merge(pieces)

    def loss(self, draw: Draw, observed: Any, synthetic: Synthetic) -> Tensor:
        """Compare the rows of the synthetic images with what was kept of the real ones."""
        rows = self.rows(draw, synthetic)
        with _full_precision(rows):
            return self.compare(observed, rows, synthetic.targets)

    def backward(self, draw: Draw, observed: Any, synthetic: Synthetic, at_once: int) -> Tensor:
        """As in `Objective`; what is not separable is done in two passes when it exceeds `at_once` images.

        So is all else on a network that mixes images: a piece of few classes would be normalised over those alone. With
        batch norm a piece has up to four times `at_once` images, since statistics of few images differ from those of
        all: between pieces of 370 and one graph of 1,120 gradients had a cosine of 0.97 to 0.997, by objective.

        The first pass takes all rows without a graph and the gradient of the loss in them; the second rebuilds the
        graph of a few images at a time. Memory stays that of `at_once` images for one more forward pass.
        """
        count = len(synthetic.images)
        mixes = count > at_once and _mixes_images(draw.network)
        if mixes:
            at_once = images_in_graph(draw.network, at_once)
        if count <= at_once or (self.separable and not mixes):
            return super().backward(draw, observed, synthetic, at_once)
        if mixes:  # as the real side is divided: each piece is normalised over all classes
            number = -(-count // at_once)
            images, targets = ([leaf[k::number] for k in range(number)] for leaf in synthetic[:2])
        else:
            images, targets = ([*leaf.split(at_once)] for leaf in synthetic[:2])
        pieces = [Synthetic(i, t) for i, t in zip(images, targets, strict=True)]
        with torch.no_grad():
            rows = torch.cat([self.rows(draw, piece) for piece in pieces])
        rows.requires_grad_()
        with _full_precision(rows):
            loss = self.one_number(self.compare(observed, rows, torch.cat(targets) if mixes else synthetic.targets))
        loss.backward()
        gradients = cast(Tensor, rows.grad).split([len(piece) for piece in images])
        for piece, gradient in zip(pieces, gradients, strict=True):
            self.rows(draw, piece).backward(gradient)
        return loss.detach()


class FeatureRows(NamedTuple):
    """Real feature rows, as they are."""

    rows: Tensor  # (M, D), float16: a pool keeps many of these
    targets: Tensor  # (M, K)


class ClassSums(NamedTuple):
    """Sums of feature rows by class: all that first-moment matching needs of real data; they add up over clients."""

    sums: Tensor  # (K, D)
    counts: Tensor  # (K,), how many rows each holds

    @property
    def means(self) -> Tensor:
        """(K, D); zero for a class that is absent."""
        return self.sums / self.counts.clamp_min(torch.finfo(self.counts.dtype).tiny).unsqueeze(1)


class SumObjective(FeatureObjective):
    """An objective that keeps nothing of a class but the sum over its rows of some function of a row."""

    keeps: ClassVar[Keeps] = "sums"

    @abstractmethod
    def added_by(self, rows: Tensor) -> Tensor:
        """Return what each feature row (N, D) adds to its class, (N, E) float32."""

    @abstractmethod
    def from_sums(self, sums: ClassSums) -> Any:
        """Return what `merge` would, from sums of `added_by` over all rows of each class."""


def capturable_on_features(objective: Objective) -> bool:
    """Say whether a step of the objective reads nothing of its draw but the network and the augmentation."""
    kind = type(objective)
    return issubclass(kind, FeatureObjective) and all(
        getattr(kind, name) is getattr(FeatureObjective, name) for name in ("rows", "loss", "backward")
    )


def _mixes_images(network: nn.Module) -> bool:
    """Say whether features of an image may depend on those beside it, as with batch norm; modules of one's own may."""
    return _has_batch_norm(network) or not is_plain(network)


def images_in_graph(network: nn.Module, at_once: int) -> int:
    """Return how many synthetic images a graph of features takes, where `at_once` is what others take."""
    return 4 * at_once if _has_batch_norm(network) else at_once


def _has_batch_norm(network: nn.Module) -> bool:
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return any(norm.training or norm.running_mean is None for norm in norms)


def _full_precision(rows: Tensor) -> torch.autocast:
    """Leave a caller's autocast for the features alone: means of many rows and a linear solve need all the digits."""
    return torch.autocast(rows.device.type, enabled=False)


@dataclass(frozen=True)
class Sum(FeatureObjective):
    """A weighted sum of objectives on the same rows: one forward pass serves them all.

    Args:
        terms: Objectives; the first one's layer, real images and recipe hold for all.
        weights: A factor for each.
        learn_labels: Learn the targets, too, through the terms that depend on them smoothly.
    """

    terms: tuple[FeatureObjective, ...]
    weights: tuple[float, ...]
    learn_labels: bool = False

    separable: ClassVar[bool] = False

    @property
    def layer(self) -> str:  # type: ignore[override]
        """The layer of the first term."""
        return self.terms[0].layer

    @property
    def per_class(self) -> int | None:  # type: ignore[override]
        """The real images of a class that the first term asks for."""
        return self.terms[0].per_class

    @property
    def recipe(self) -> Recipe:  # type: ignore[override]
        """The recipe of the first term."""
        return self.terms[0].recipe

    def summarise(self, rows: Tensor, targets: Tensor) -> tuple[Any, ...]:
        """Return what each term keeps."""
        return tuple(term.summarise(rows, targets) for term in self.terms)

    def merge(self, pieces: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Merge term by term."""
        return tuple(term.merge(part) for term, part in zip(self.terms, zip(*pieces, strict=True), strict=True))

    def weigh(self, observed: tuple[Any, ...], targets: Tensor) -> Sequence[float | Tensor]:
        """Return a factor for each term, given what `compare` is: `weights`, whatever that is."""
        return self.weights

    def compare(self, observed: tuple[Any, ...], rows: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted sum of the terms' losses."""
        losses = [t.compare(o, rows, targets) for t, o in zip(self.terms, observed, strict=True)]
        return sum(
            (w * loss for w, loss in zip(self.weigh(observed, targets), losses, strict=True)), rows.new_zeros(())
        )

"""Ridge regression on random features, in closed form (Fed3R: Fani et al., ICML 2024, https://arxiv.org/abs/2406.01116).

All sites share a frozen random network, by its seed, and send sums over its features once. Sums over any division of
the records give one classifier, so label skew costs nothing; the server cannot train another network end to end.

Where 16 or 8 bits per number are asked for, a site sends a triangular factor (`fedcondense.flower.strategies.factors`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.contract import Holder
from fedcondense.data import Data
from fedcondense.errors import UntrustedSetError, look_up
from fedcondense.flower.asking import Asked
from fedcondense.flower.caps import Cost
from fedcondense.flower.contract import Answer, Job, Node, Question, Site, State, Task
from fedcondense.flower.payloads import Sums
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.settings import later, number
from fedcondense.flower.strategies.entry import Entry, ServerSide
from fedcondense.flower.strategies.factors import (
    FORMS,
    check_factor,
    extended,
    factor_bytes,
    factored,
    least_squares,
    products_of,
    size_of,
    square,
)
from fedcondense.flower.strategies.features import feature_dims, labelled_by, random_features
from fedcondense.networks import default_network

__all__ = ["RIDGE", "Products", "Ridge", "ridge_dims"]

_PRECISIONS = ("float32", *FORMS)


@dataclass(frozen=True)
class Products(Task[Sums]):
    """Sum the products of features with each other and with labels.

    Args:
        classes: The names that labels index, in order.
        network: A name in `NETWORKS`; empty: the one for the images' size.
        seed: Of the network and of the projection.
        dims: Feature dimensions; 0 takes all of the network's.
        precision: ``"float32"`` for sums, which add up under a secure aggregation too; ``"float16"``, ``"int8"`` or
            ``"int8-deflated"`` for a triangular factor, which does not.
    """

    classes: tuple[str, ...] = ()
    network: str = ""
    seed: int = number(0, 0)
    dims: int = number(0, 0)
    precision: str = later("float32")

    name: ClassVar[str] = "products"
    leaves: ClassVar[str] = "sums over records of products of features, and of features by class"
    payload: ClassVar[type[Sums]] = Sums

    def prepare(self, holder: Holder, node: Node) -> Job[Sums]:
        """Return one pass over all records, for the upper triangle of the Gram matrix and the products with labels."""
        look_up("precision", self.precision, dict.fromkeys(_PRECISIONS))
        data = labelled_by(holder, self.classes, node)
        network = self.network or default_network(data.spec.shape)

        def run() -> Sums:
            with torch.autocast(data.device.type, enabled=False):  # sums over all records need all the digits
                features, targets = extended(random_features(data, network, self.seed, self.dims), data)
                if self.precision == "float32":
                    return _products(features, targets)
                return factored(features, targets, self.precision)

        d = self.dims or random_features(data.subset(torch.arange(1)), network, self.seed).shape[1]
        nbytes = _bytes(d, len(data.spec.classes), self.precision, len(data))
        copies = 1 if self.precision == "float32" else 3  # what a factorisation takes beside its input
        return Job(Cost(nbytes=nbytes, memory=copies * 4 * len(data) * (d + 1), networks=(network,)), run)


def _products(features: Tensor, targets: Tensor) -> Sums:
    """Return sums over records."""
    gram = (features.T @ features).cpu()
    rows, columns = torch.triu_indices(*gram.shape)
    return Sums({"gram": gram[rows, columns], "products": (features.T @ targets).cpu()})


def _bytes(dims: int, classes: int, precision: str, records: int | None = None) -> int:
    """Return what statistics take without their header; fewer records than dimensions have fewer rows of a factor."""
    if precision == "float32":
        return 4 * ((dims + 1) * (dims + 2) // 2 + (dims + 1) * classes)
    return factor_bytes(dims + 1, classes, precision, records)


def ridge_dims(nbytes: int, classes: int, precision: str = "float32") -> int:
    """Return how many feature dimensions ridge statistics of at most `nbytes` bytes can have, at least 1.

    Sums take ``4 * ((d + 1) * (d + 2) / 2 + (d + 1) * classes)`` bytes; a factor has as many numbers, of 1 or 2 bytes,
    and a scale of 4 bytes per row. What deflating saves is left.
    """
    dims = 1
    while _bytes(dims + 1, classes, precision) <= nbytes:
        dims += 1
    return dims


class Ridge(Rounds):
    """Solve least squares on the sites' summed products: one classifier, whatever the division of the records.

    Args:
        task: What is asked; the classes of `limits` are named in it.
        strength: The ridge, as a share of the mean diagonal of the Gram matrix; a guess that is flat around itself.
        limits: What a reply may hold.
        asked: As in `Rounds`.
    """

    most_rounds = 1

    def __init__(
        self,
        task: Products = Products(),
        strength: float = 1e-4,
        limits: ReplyLimits = ReplyLimits(),
        **asked: Unpack[Asked],
    ) -> None:
        super().__init__(limits, None, **asked)
        self.task: Products = replace(task, classes=task.classes or limits.classes or ())
        self.strength = strength

    def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Question:
        """Ask everybody the same."""
        return self.task

    def examine(self, stage: str, answer: Answer[Sums]) -> None:
        """Refuse sums of other names, shapes or dtypes than `Products` gives of this server's images.

        Whatever the others send, the server must be able to solve: products of features with themselves have no
        direction in which they are negative.
        """
        network, shape = self.task.network, self.limits.shape
        if shape is not None:
            size = 1 + feature_dims(network or default_network(shape), shape, self.task.seed, self.task.dims)
        else:  # whatever the sums say, as long as both say the same
            size = self._size(answer.payload)
        classes, triangle = len(self.task.classes), size * (size + 1) // 2
        if self.task.precision != "float32":
            check_factor(answer.payload, size, classes, self.task.precision)
            return
        like = {"gram": torch.empty(triangle, device="meta"), "products": torch.empty(size, classes, device="meta")}
        answer.payload.matching(like, "this network")
        gram = square(answer.payload.tensors["gram"].double(), size)
        gram.diagonal().add_(1e-4 * gram.diagonal().mean() + 1e-9)  # rounded sums, or none at all, are no lie
        if bool(torch.linalg.cholesky_ex(gram).info):
            raise UntrustedSetError("'gram' holds no products of features with themselves")

    def kind(self, stage: str, answer: Answer[Sums]) -> str:
        """Say how many features the sums are of."""
        return f"sums over {self._size(answer.payload)} features"

    def _size(self, sums: Sums) -> int:
        """Return how many features sums or a factor are of, the constant included, as they themselves say."""
        if self.task.precision == "float32":
            return len(sums.tensors.get("products", ()))
        return size_of(sums, len(self.task.classes), self.task.precision)

    def _products(self, sums: Sums) -> tuple[Tensor, Tensor]:
        """Return a site's Gram matrix and its products with labels, in float64."""
        size = self._size(sums)
        if self.task.precision != "float32":
            return products_of(sums, size, len(self.task.classes), self.task.precision)
        return square(sums.tensors["gram"].double(), size), sums.tensors["products"].double()

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Sums]]) -> State:
        """Add the sums up in float64 and solve."""
        classifier = least_squares((self._products(answer.payload) for answer in answers), self.strength)
        return state.but(tensors={"classifier": classifier.float()})

    @in_own_state
    def classify(self, data: Data) -> Tensor:
        """Return scores of records, (N, K) on the CPU."""
        weights = self.state.tensors["classifier"]
        network = self.task.network or default_network(data.spec.shape)
        features = random_features(data, network, self.task.seed, self.task.dims).cpu()
        return features @ weights[:-1] + weights[-1]


def _ridge(side: ServerSide) -> Ridge:
    task = replace(side.settings, network=side.network or side.settings.network)
    return Ridge(task, limits=side.limits, **side.asked)


def _entry(label: str, precision: str, travels: str) -> Entry:
    return Entry(
        _ridge,
        label=label,
        travels=travels,
        seen="the server sees each site's sums: of a class of few records nearly their features",
        settings=Products(precision=precision),
        tasks=(Products,),
    )


RIDGE: dict[str, Entry] = {
    "ridge": _entry("ridge", "float32", "sums of random features"),
    "ridge-half": _entry("ridge, 16 bits", "float16", "sums of random features, as a factor at 16 bits"),
    "ridge-8bit": _entry("ridge, 8 bits", "int8-deflated", "sums of random features, as a factor at 8 bits"),
}

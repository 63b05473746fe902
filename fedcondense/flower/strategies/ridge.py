"""Ridge regression on random features, in closed form (Fed3R: Fani et al., ICML 2024, https://arxiv.org/abs/2402.07581).

All sites share a frozen random network, by its seed, and send sums over its features once. Sums over any division of
the records give one classifier, so label skew costs nothing; the server cannot train another network end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcondense.ambient import in_own_state
from fedcondense.contract import Holder
from fedcondense.data import Data
from fedcondense.errors import UntrustedSetError
from fedcondense.flower.asking import Asked
from fedcondense.flower.caps import Cost
from fedcondense.flower.contract import Answer, Job, Node, Question, Site, State, Task
from fedcondense.flower.payloads import Sums
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.settings import number
from fedcondense.flower.strategies.entry import Entry, ServerSide
from fedcondense.flower.strategies.features import feature_dims, labelled_by, random_features
from fedcondense.networks import default_network

__all__ = ["RIDGE", "Products", "Ridge", "ridge_dims"]


@dataclass(frozen=True)
class Products(Task[Sums]):
    """Sum the products of features with each other and with labels.

    Args:
        classes: The names that labels index, in order.
        network: A name in `NETWORKS`; empty: the one for the images' size.
        seed: Of the network and of the projection.
        dims: Feature dimensions; 0 takes all of the network's.
    """

    classes: tuple[str, ...] = ()
    network: str = ""
    seed: int = number(0, 0)
    dims: int = number(0, 0)

    name: ClassVar[str] = "products"
    payload: ClassVar[type[Sums]] = Sums

    def prepare(self, holder: Holder, node: Node) -> Job[Sums]:
        """Return one pass over all records, for the upper triangle of the Gram matrix and the products with labels."""
        data = labelled_by(holder, self.classes, node)
        network = self.network or default_network(data.spec.shape)

        def run() -> Sums:
            with torch.autocast(data.device.type, enabled=False):  # sums over all records need all the digits
                return _products(random_features(data, network, self.seed, self.dims), data)

        d = self.dims or random_features(data.subset(torch.arange(1)), network, self.seed).shape[1]
        values = (d + 1) * (d + 2) // 2 + (d + 1) * len(data.spec.classes)
        return Job(Cost(nbytes=4 * values, memory=4 * len(data) * (d + 1), networks=(network,)), run)


def _products(features: Tensor, data: Data) -> Sums:
    """Return sums over records: features are extended by a constant one."""
    features = torch.cat([features, features.new_ones(len(features), 1)], 1)
    targets = F.one_hot(data.labels, len(data.spec.classes)).float()
    gram = (features.T @ features).cpu()
    rows, columns = torch.triu_indices(*gram.shape)
    return Sums({"gram": gram[rows, columns], "products": (features.T @ targets).cpu()})


def _square(triangle: Tensor, size: int) -> Tensor:
    """Return the symmetric matrix of an upper triangle."""
    square = triangle.new_zeros(size, size)
    rows, columns = torch.triu_indices(size, size)
    square[rows, columns] = triangle
    return square + square.triu(1).T


def ridge_dims(nbytes: int, classes: int) -> int:
    """Return how many feature dimensions ridge statistics of at most `nbytes` bytes can have, at least 1.

    They take ``4 * ((d + 1) * (d + 2) / 2 + (d + 1) * classes)`` bytes.
    """
    dims = 1
    while 4 * ((dims + 2) * (dims + 3) // 2 + (dims + 2) * classes) <= nbytes:
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
            size = len(answer.payload.tensors.get("products", ()))
        classes, triangle = len(self.task.classes), size * (size + 1) // 2
        like = {"gram": torch.empty(triangle, device="meta"), "products": torch.empty(size, classes, device="meta")}
        answer.payload.matching(like, "this network")
        gram = _square(answer.payload.tensors["gram"].double(), size)
        gram.diagonal().add_(1e-4 * gram.diagonal().mean() + 1e-9)  # rounded sums, or none at all, are no lie
        if bool(torch.linalg.cholesky_ex(gram).info):
            raise UntrustedSetError("'gram' holds no products of features with themselves")

    def kind(self, stage: str, answer: Answer[Sums]) -> str:
        """Say how many features the sums are of."""
        return f"sums over {len(answer.payload.tensors['products'])} features"

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Sums]]) -> State:
        """Add the sums up in float64 and solve."""
        first, *others = (answer.payload.wide() for answer in answers)
        sums = sum(others, first).tensors
        triangle, products = sums["gram"], sums["products"]
        size = len(products)
        gram = _square(triangle, size)
        penalty = self.strength * gram.diagonal().mean() * torch.eye(size, dtype=torch.float64)
        return state.but(tensors={"classifier": torch.linalg.solve(gram + penalty, products).float()})

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


RIDGE = Entry(
    _ridge,
    label="ridge",
    travels="sums of random features",
    seen="the server sees each site's sums: of a class of few records nearly their features",
    settings=Products(),
    tasks=(Products,),
)

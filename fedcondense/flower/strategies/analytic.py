"""A stream of tasks with new classes, learned in closed form: sums of old tasks stay, no record is shown again.

Sites send sums over random features of each task's records, as `fedcondense.flower.strategies.ridge` does, and the
server adds them to those that it keeps: the network's last layer follows from all tasks so far together, whatever their
order and the division of the records (ACIL: Zhuang et al., NeurIPS 2022, https://arxiv.org/abs/2205.14922; AFL: He et
al., CVPR 2025, https://arxiv.org/abs/2405.16240, both on the features of a trained network). What is kept is one
triangular factor, rounded anew after each task, however many sites and tasks there were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from fedcondense.condensing import Own
from fedcondense.contract import Holder
from fedcondense.data import Spec
from fedcondense.errors import SettingError
from fedcondense.flower.asking import Asked
from fedcondense.flower.contract import Answer, Job, Node, Question, Site, State, Task
from fedcondense.flower.payloads import Sums, Weights
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.settings import number
from fedcondense.flower.strategies.closed_head import SHARPNESS, last_layer
from fedcondense.flower.strategies.condense_classes import restricted
from fedcondense.flower.strategies.entry import Entry, ServerSide
from fedcondense.flower.strategies.factors import check_factor, factor_of, least_squares, products_of, summed
from fedcondense.flower.strategies.features import feature_dims, labelled_by, normalised, projection
from fedcondense.flower.strategies.incremental import begins, check_tasks, done_by, tasks_of
from fedcondense.flower.strategies.ridge import Products, ridge_dims
from fedcondense.networks import build, default_network

__all__ = ["ANALYTIC", "Analytic", "AnalyticSettings", "ProductsOfClasses"]

_FORM = "int8-deflated"  # of what travels
_EXACT, _ENOUGH = "float16", 600  # of what is kept, where so many features have room
_HEADER = 200  # bytes at most of what is kept
_UNSEEN = -100.0  # logit of a class of which no site had a record


@dataclass(frozen=True)
class ProductsOfClasses(Task[Sums]):
    """Sum the products of random features with each other and with labels, over the records of some classes.

    Args:
        classes: The names that labels index, in order.
        asked: Names of the classes whose records count; empty: all.
        mean: What images are normalised by, a number per channel; empty: as the node's own are.
        std: Likewise.
        network: A name in `NETWORKS`; empty: the one for the images' size.
        seed: Of the network and of the projection.
        dims: Feature dimensions; 0 takes all of the network's.
    """

    classes: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    network: str = ""
    seed: int = number(0, 0)
    dims: int = number(0, 0)

    name: ClassVar[str] = "products_of_classes"
    leaves: ClassVar[str] = (
        "sums over the records of the classes asked for: products of features, and of features by class"
    )
    payload: ClassVar[type[Sums]] = Sums

    def prepare(self, holder: Holder, node: Node) -> Job[Sums]:
        """Return one pass over the records of these classes, for the factor of their features and labels."""
        data = normalised(labelled_by(restricted(holder, self.asked, node), self.classes, node), self.mean, self.std)
        return Products(self.classes, self.network, self.seed, self.dims, _FORM).prepare(Own(data), node)


class Analytic(Rounds):
    """Ask for sums over each task's classes in turn, add them to those of the tasks before, and solve for all classes.

    The network is an untrained one with the last layer that solves least squares on the records of all tasks. A site
    that has answered a task is not asked for it again, and keeps nothing of it; one that was away is asked for what it
    missed. `seen` are the classes so far.

    Args:
        spec: Shape, classes and normalisation of the images: the network's outputs are its classes.
        tasks: Names of classes that come together, task by task (`tasks_of`).
        task: What is asked; the strategy sets classes and normalisation.
        memory: Bytes of what the server keeps, which say how many features there are; 0: all of the network's. They are
            kept at 8 bits, or at 16 where 600 have room (`experiments/analytic_bits.py`, on held-out images).
        network: A name in `NETWORKS` with a last `nn.Linear`; empty: the one for the images' size.
        limits: What a reply may hold; None: what `spec` says.
        asked: As in `Rounds`. A site without a class of a task is left out and has not failed.

    Raises:
        SettingError: A task names no class, one that `spec` lacks, or one that came before; the network has no last
            layer that can be solved for.
    """

    def __init__(
        self,
        spec: Spec,
        tasks: Sequence[Sequence[str]],
        task: ProductsOfClasses = ProductsOfClasses(),
        *,
        memory: int = 0,
        network: str = "",
        limits: ReplyLimits | None = None,
        **asked: Unpack[Asked],
    ) -> None:
        super().__init__(ReplyLimits.of(spec) if limits is None else limits, None, **asked)
        self.spec, self.tasks = spec, tuple(map(tuple, tasks))
        if not self.tasks:
            raise SettingError("analytic adds up tasks, which need classes: classes-per-task = 1 or more")
        check_tasks(self.tasks, spec)
        self.network = network or task.network or default_network(spec.shape)
        room, classes = max(1, memory - _HEADER), len(spec.classes)
        dims, self.form = ridge_dims(room, classes, _EXACT) if memory else 0, _EXACT
        if 0 < dims < _ENOUGH:
            dims, self.form = ridge_dims(room, classes, _FORM), _FORM
        dims = task.dims or dims
        self.task: ProductsOfClasses = replace(
            task, classes=spec.classes, mean=spec.mean, std=spec.std, network=self.network, dims=dims
        )
        self.model = build(self.network, spec.shape, classes, task.seed)
        last_layer(self.model)
        self.size = 1 + feature_dims(self.network, spec.shape, task.seed, dims)
        self.rounds = len(self.tasks)

    @property
    def seen(self) -> tuple[str, ...]:
        """The classes of which some site had records, in the order of `spec`."""
        return tuple(name for name, n in zip(self.spec.classes, self._seen(self.state).tolist(), strict=True) if n)

    def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Mapping[Site, Question]:
        """Ask for the classes of the round's task, and late sites also for those that they missed; then nobody."""
        if server_round > len(self.tasks):
            return {}
        missed = begins(server_round - 1, state, sites)
        return {
            site: replace(self.task, asked=tuple(name for names in self.tasks[begin:server_round] for name in names))
            for site, begin in missed.items()
        }

    def examine(self, stage: str, answer: Answer[Sums]) -> None:
        """Refuse what is no factor of so many of this network's features."""
        check_factor(answer.payload, self.size, len(self.spec.classes), _FORM)

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Sums]]) -> State:
        """Add the products to those that are kept, and solve for the last layer."""
        came = (self._products(answer.payload.tensors, _FORM) for answer in answers)
        before = [self._products(state.tensors, self.form)] if "rows" in state.tensors else []
        gram, targets = summed(chain(before, came))
        seen = self._seen(state) | (targets[-1] > 0.5)
        kept = factor_of(gram, targets, self.form)
        solution = least_squares([self._products(kept.tensors, self.form)], None)
        return state.but(
            weights=self._weights(solution, seen),
            tensors={**kept.tensors, "seen": seen},
            numbers={**state.numbers, **done_by(answers, server_round)},
        )

    def _products(self, factor: Mapping[str, Tensor], form: str) -> tuple[Tensor, Tensor]:
        return products_of(Sums(factor), self.size, len(self.spec.classes), form)

    def _seen(self, state: State) -> Tensor:
        return state.tensors.get("seen", torch.zeros(len(self.spec.classes), dtype=torch.bool))

    def _weights(self, solution: Tensor, is_seen: Tensor) -> Weights:
        """Return the untrained network's weights with the solution as its last layer."""
        mean = solution[:, is_seen].sum(1, keepdim=True) / is_seen.sum().clamp_min(1)
        solution = SHARPNESS * (solution - mean) * is_seen
        name, layer = last_layer(self.model)
        rows, bias = solution[:-1], solution[-1].where(is_seen, torch.tensor(_UNSEEN, dtype=torch.float64))
        if len(rows) < layer.in_features:
            rows = projection(layer.in_features, len(rows), self.task.seed).double() @ rows
        solved = {f"{name}.weight": rows.T.float().contiguous(), f"{name}.bias": bias.float()}
        return Weights({**Weights.of(self.model).tensors, **solved})


@dataclass(frozen=True)
class AnalyticSettings:
    """What a run says of a stream that is learned in closed form.

    Args:
        classes_per_task: How many classes are new in a task.
        order: A seed of the order in which classes come; 0: as the server's data name them.
        memory: As in `Analytic`.
        network: Likewise.
        seed: Of the network and of the projection.
        dims: Feature dimensions, in the place of those that `memory` has room for; 0: those.
    """

    classes_per_task: int = number(2, 1)
    order: int = number(0, 0)
    memory: int = number(0, 0)
    network: str = ""
    seed: int = number(0, 0)
    dims: int = number(0, 0)


def _analytic(side: ServerSide) -> Analytic:
    if side.spec is None:
        raise SettingError("analytic needs a server that knows the data, whose classes the tasks name: data = ...")
    given: AnalyticSettings = side.settings
    return Analytic(
        side.spec,
        tasks_of(side.spec.classes, given.classes_per_task, given.order),
        ProductsOfClasses(seed=given.seed, dims=given.dims),
        memory=given.memory,
        network=side.network or given.network,
        limits=side.limits,
        **side.asked,
    )


ANALYTIC = Entry(
    _analytic,
    label="analytic",
    travels="sums of random features of new classes, every task",
    seen="the server sees each site's sums, task by task: of a class of few records nearly their features",
    settings=AnalyticSettings(),
    tasks=(ProductsOfClasses,),
    rounds=5,
    starts=True,
)

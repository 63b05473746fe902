"""DynaFed: the server distils the averages that it has seen (Pi et al., CVPR 2023, https://arxiv.org/abs/2211.10878).

Sites do what they do under FedAvg and learn of nothing; no synthetic image travels. What is distilled follows from
averages alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from fedcondense.ambient import in_own_state
from fedcondense.condensing import prepare, run
from fedcondense.contract import Draw, Objective
from fedcondense.data import Data, Spec
from fedcondense.errors import SettingError
from fedcondense.flower.checked_grid import averageable, settled
from fedcondense.flower.settings import number
from fedcondense.flower.strategies.averaging import LocalTraining
from fedcondense.flower.strategies.entry import Entry, ServerSide
from fedcondense.networks import build, default_network
from fedcondense.networks.trainable import trainable
from fedcondense.objectives.trajectory import TrajectoryMatching
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sources.trajectories import Trajectories
from fedcondense.training.evaluation import batch_for
from fedcondense.training.fit import Fit, fit

__all__ = ["DYNAFED", "Distilling", "DynaFed", "distilled"]


@dataclass(frozen=True)
class Distilling(LocalTraining):
    """How sites train, and what the server makes of the averages; it is told to nobody.

    Args:
        lr: As in `LocalTraining`, and so are the others that are not told here.
        epochs: Passes over a site's data per round.
        batch: Images per step.
        momentum: As in most published FedAvg baselines.
        after: Rounds whose averages are distilled, once; 25 of 200 as published.
        ipc: Synthetic images per class; 15 as published. They stay at the server.
        steps: Of distilling; 3000 as published, here a guess for minutes of one CPU core.
        window: Training steps on synthetic images that a step unrolls; 20 as published.
        span: Rounds from where a window starts to where it should end; 3 epochs as published.
        tuning: Training steps on the synthetic images after each averaging; a guess.
        tuning_lr: Their largest step size; a guess.
    """

    after: int = number(5, 1)
    ipc: int = number(10, 1)
    steps: int = number(60, 1)
    window: int = number(4, 1)
    span: int = number(2, 1)
    tuning: int = number(50, 0)
    tuning_lr: float = number(0.01, 0)


class _Passed(Trajectories):
    """One expert, whose snapshots are given."""

    def __init__(self, make: Any, operations: tuple[str, ...], given: Sequence[Tensor], span: int) -> None:
        super().__init__(make, operations, 0, experts=1, latest=len(given) - 1 - span, span=span, seed=0, train=False)
        self._given = tuple(given)

    def snapshots(self, expert: int, ages: tuple[int, ...], data: Data) -> list[Tensor]:
        """Return the weights at some snapshots."""
        return [self._given[age] for age in ages]


class _NoRecords:
    """Answers for no records at all: a number of images of each class is made of weights alone.

    Args:
        spec: What the images are.
        images: Of each class.
        device: Where.
    """

    fingerprint = "no records"

    def __init__(self, spec: Spec, images: int, device: torch.device | str) -> None:
        self.spec, self.device = spec, torch.device(device)
        self.counts = torch.full((len(spec.classes),), images)
        nothing = torch.empty(0, *spec.shape, dtype=torch.uint8, device=self.device)
        self.data = Data(nothing, torch.empty(0, dtype=torch.int64, device=self.device), spec)

    def observe(self, objective: Objective, draw: Draw) -> None:
        """Return nothing."""


@in_own_state
def distilled(trajectory: Sequence[Tensor], spec: Spec, network: str, task: Distilling, seed: int) -> SyntheticSet:
    """Return images with learned labels on which training moves as the averages did, from noise.

    Args:
        trajectory: Weights of a network as one vector, (P,) each, in the order of rounds; more than `span` of them.
        spec: Of the images.
        network: A name in `NETWORKS`.
        task: How.
        seed: Of the noise and the windows.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    make = partial(build, network, spec.shape, len(spec.classes))
    span = min(task.span, len(trajectory) - 1)
    loop = prepare(
        _NoRecords(spec, task.ipc, device),
        task.ipc,
        TrajectoryMatching(window=task.window, gradient="recompute", learn_labels=True),
        "pixels",
        network=network,
        seed=seed,
        steps=task.steps,
        start="noise",
        source=_Passed(make, spec.operations, trajectory, span),
    )
    return run(loop).with_record(counts=())


class DynaFed(FedAvg):
    """Flower's FedAvg, after which the server trains each average on images that it has distilled from averages.

    Args:
        spec: Shape, classes and normalisation of the images.
        network: A name in `NETWORKS`.
        task: How the server distils and trains.
        recipe: What of that training `task` does not say.
        seed: Of both.
        flower: FedAvg's own arguments.
    """

    def __init__(self, spec: Spec, network: str, task: Distilling, recipe: Fit, seed: int, **flower: Any) -> None:
        super().__init__(fraction_evaluate=0.0, **flower)
        self.spec, self.network, self.task, self.recipe, self.seed = spec, network, task, recipe, seed
        self.trajectory: list[Tensor] = []  # the weights before the first round, and the averages after it
        self.made = b""  # the file of the set

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask as FedAvg does."""
        if not self.trajectory:
            self.trajectory = [_vector(settled(arrays, self._model()).load_into(self._model()))]
        messages: Iterable[Message] = super().configure_train(server_round, arrays, config, grid)
        return messages

    @in_own_state
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average; distil when there are averages enough; train on what was distilled."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None:
            return arrays, metrics
        model = self._model()
        settled(arrays, model).load_into(model)
        if not self.made:
            self.trajectory.append(_vector(model))
            if len(self.trajectory) <= self.task.after:
                return arrays, metrics
            self.made = distilled(self.trajectory, self.spec, self.network, self.task, self.seed).to_bytes()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        batch, _ = batch_for(SyntheticSet.from_bytes(self.made), self.spec.classes, device)
        recipe = replace(self.recipe, steps=self.task.tuning, lr=self.task.tuning_lr)
        fit(model, *batch, recipe, seed=self.seed + server_round, operations=self.spec.operations)
        return averageable(model.cpu().state_dict()), metrics

    def _model(self) -> nn.Module:
        return build(self.network, self.spec.shape, len(self.spec.classes), 0)


def _vector(network: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(trainable(network).values()).detach().float().cpu()


def _dynafed(side: ServerSide) -> DynaFed:
    if side.spec is None:
        raise SettingError("dynafed needs a server that knows the data, whose classes the network has: data = ...")
    own = side.settings if isinstance(side.settings, Distilling) else Distilling(**asdict(side.settings))
    known = ("fraction_train", "min_train_nodes", "min_available_nodes")
    asked = {key: value for key, value in side.asked.items() if key in known}
    network = side.network or default_network(side.spec.shape)
    return DynaFed(side.spec, network, own, side.recipe, side.seed, **asked)


DYNAFED = Entry(
    _dynafed,
    label="DynaFed",
    travels="weights, every round",
    seen="the server sees each site's weights, every round",
    settings=Distilling(),
    handlers=("train",),
    rounds=20,
    starts=True,
)

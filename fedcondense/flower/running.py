"""Running any strategy against a grid, and measuring what it ends with: for the server app and for comparisons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.data import Data
from fedcondense.errors import SettingError
from fedcondense.flower.checked_grid import CheckedGrid, averageable, settled
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.strategies import Entry, ServerSide
from fedcondense.flower.strategies.averaging import LocalTraining, training_config
from fedcondense.networks import build, default_network
from fedcondense.training.fit import accuracy

__all__ = ["accuracy_of_scores", "accuracy_of_weights", "checked_grid", "over_seen", "run_strategy", "scores_of"]

Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]


@in_own_state
def run_strategy(
    entry: Entry,
    side: ServerSide,
    strategy: Strategy,
    grid: Grid,
    rounds: int,
    timeout: float,
    evaluate_fn: Evaluate | None,
) -> Result:
    """Run a strategy for some rounds, as it wants to be started.

    A `Rounds` asks by its own task. Other Flower strategies get the weights of an untrained network, if their entry
    says that they start from some, over a `CheckedGrid`, and with each message the entry's settings.
    """
    if isinstance(strategy, Rounds):
        return strategy.start(grid, num_rounds=rounds, timeout=timeout, evaluate_fn=evaluate_fn)
    config = ConfigRecord({name.replace("_", "-"): value for name, value in asdict(side.settings).items()})
    if not entry.starts:
        return strategy.start(grid, ArrayRecord(), rounds, timeout, config, evaluate_fn=evaluate_fn)
    checked = grid if isinstance(grid, CheckedGrid) else checked_grid(entry, side, grid)
    if isinstance(side.settings, LocalTraining):
        config = training_config(side.settings, side, bits=entry.bits)
    arrays = averageable(checked.network.state_dict())
    return strategy.start(checked, arrays, rounds, timeout, config, ConfigRecord(dict(config)), evaluate_fn)


def checked_grid(entry: Entry, side: ServerSide, grid: Grid) -> CheckedGrid:
    """Return a grid that checks weights against the untrained network that a strategy starts from.

    Raises:
        SettingError: The server does not know the classes of the network's outputs.
    """
    if side.spec is None:
        raise SettingError(
            f"{entry.label} needs a server that knows the data, whose classes the network has: data = ..."
        )
    shape, classes = side.spec.shape, len(side.spec.classes)
    network = build(side.network or default_network(shape), shape, classes, side.seed)
    return CheckedGrid(grid, network, bits=entry.bits)


@in_own_state
def accuracy_of_weights(arrays: ArrayRecord, side: ServerSide, test: Data) -> tuple[float, Tensor]:
    """Return percent right, and percent right per class (nan where there are no examples), of a network's weights."""
    spec = test.spec
    model = build(side.network or default_network(spec.shape), spec.shape, len(spec.classes), 0)
    settled(arrays, model).load_into(model)
    return accuracy(model.to(test.device), test)


def over_seen(strategy: Strategy | None, per_class: Tensor, test: Data) -> dict[str, float]:
    """Return percent right over the classes that a stream has brought so far; nothing of strategies without one."""
    names = getattr(strategy, "seen", ())
    known = torch.tensor([name in names for name in test.spec.classes]) & (test.counts > 0)
    if not bool(known.any()):
        return {}
    return {"seen": round(float((per_class[known] * test.counts[known]).sum() / test.counts[known].sum()), 3)}


def accuracy_of_scores(scores: Tensor, test: Data) -> tuple[float, Tensor]:
    """Return percent right, and percent right per class, of scores (N, K) on the CPU."""
    labels, classes = test.labels.cpu(), len(test.spec.classes)
    right = (scores.argmax(1) == labels).float()
    per_class = 100 * torch.bincount(labels, weights=right, minlength=classes) / test.counts
    return float(100 * right.mean()), per_class


def scores_of(strategy: Any, test: Data) -> Tensor | None:
    """Return what a strategy that ends in a classifier of its own says of records, or None."""
    classify = getattr(strategy, "classify", None)
    return None if classify is None else classify(test)

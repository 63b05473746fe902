from __future__ import annotations

from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.logging import BaseLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

import fedcondense as fc
from fedcondense.avalanche import WeightAveragingPlugin, split_benchmark
from fedcondense.errors import SettingError


class Notes(SupervisedPlugin):  # type: ignore[misc]
    """Keeps the weights after each update of an experience."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[torch.Tensor] = []

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        self.weights.append(strategy.model[-1].weight.detach().clone())


@pytest.mark.parametrize("last", [0.25, 1.0, 0.001])
def test_an_experience_ends_with_the_mean_of_the_last_weights(last: float) -> None:
    """A share that holds less than one update leaves the last weights."""
    train, test = fc.load_data("digits")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    notes = Notes()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        train_epochs=2,
        plugins=[notes, WeightAveragingPlugin(last)],
        evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
    )
    for experience in split_benchmark(train, test, 5).train_stream[:2]:
        notes.weights.clear()
        strategy.train(experience)
        counted = notes.weights[int(len(notes.weights) * (1 - last)) :]
        torch.testing.assert_close(strategy.model[1].weight.detach(), torch.stack(counted).mean(0))


@pytest.mark.parametrize("last", [0, -1, 1.5])
def test_a_share_that_is_none_is_refused(last: float) -> None:
    with pytest.raises(SettingError, match=f"last {last}; needed: a share"):
        WeightAveragingPlugin(last)

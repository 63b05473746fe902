"""Averaged weights at the end of an experience (stochastic weight averaging): Izmailov et al., UAI 2018."""

from __future__ import annotations

from typing import Any

from avalanche.core import SupervisedPlugin
from torch.optim.swa_utils import AveragedModel

from fedcondense.errors import SettingError

__all__ = ["WeightAveragingPlugin"]


class WeightAveragingPlugin(SupervisedPlugin):
    """Ends an experience with the mean of the weights of its last updates.

    With a constant step size, which most continual learners use, the last weights are a noisy sample around that mean.
    The model has it from the last update on, before other plugins keep weights to stay near to, as `EWCPlugin` does.
    Running statistics of batch norm are averaged too. The plugin keeps one more copy of the model in the last part of
    an experience. It works with any Avalanche strategy; the condensed strategies have it. Measured:
    `experiments/memories.md`.

    Args:
        last: The share of an experience's updates that count, above 0 and up to 1.
    """

    def __init__(self, last: float = 0.25) -> None:
        super().__init__()
        if not 0 < last <= 1:
            raise SettingError(f"last {last!r}; needed: a share of the updates, above 0 and up to 1")
        self.last = last
        self._done, self._updates, self._first = 0, 0, 0.0
        self._mean: AveragedModel | None = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Count the updates to come."""
        self._done, self._updates, self._mean = 0, strategy.train_epochs * len(strategy.dataloader), None
        self._first = self._updates * (1 - self.last)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Add the weights to the mean, and give the model the mean with the last of them."""
        self._done += 1
        if self._done > self._first:
            if self._mean is None:
                self._mean = AveragedModel(strategy.model, use_buffers=True)
            self._mean.update_parameters(strategy.model)
        if self._done == self._updates:
            self._give(strategy)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Give the model the mean where training was stopped before its last update."""
        self._give(strategy)

    def _give(self, strategy: Any) -> None:
        if self._mean is not None:
            strategy.model.load_state_dict(self._mean.module.state_dict())
        self._mean = None

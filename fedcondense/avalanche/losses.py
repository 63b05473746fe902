"""The losses of a strategy with a memory: its own criterion on both sides, entered where Avalanche takes a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.training.templates.problem_type.supervised_problem import SupervisedProblem
from torch import Tensor, nn

from fedcondense.avalanche.sampling import Replayed, Sampler
from fedcondense.errors import SettingError

__all__ = ["InPlaceOfCriterion", "memory_loss", "refuse_own_criterion", "stream_loss"]


class InPlaceOfCriterion:
    """Returns another loss once, the next time that a strategy asks its `criterion` for one.

    Avalanche adds the criterion's value to the loss before it calls `before_backward` of the plugins. What they add to
    it, or make of it, then holds for our loss as well, in any order of plugins.

    Args:
        strategy: In training, between the forward pass and its loss.
        loss: Called without arguments; `strategy.criterion` is the strategy's own again by then.
    """

    def __init__(self, strategy: Any, loss: Callable[[], Tensor]) -> None:
        self.strategy, self.loss = strategy, loss
        self.before = vars(strategy).get("criterion")
        strategy.criterion = self

    def __call__(self) -> Tensor:
        """Return the loss; in evaluation, which an interrupted training leads to, the strategy's own."""
        self.undo()
        own: Tensor = self.loss() if self.strategy.is_training else self.strategy.criterion()
        return own

    def undo(self) -> bool:
        """Give the strategy its own criterion back, and say whether it had not been asked."""
        if vars(self.strategy).get("criterion") is not self:
            return False
        if self.before is None:
            del self.strategy.criterion
        else:
            self.strategy.criterion = self.before
        return True


def refuse_own_criterion(strategy: Any) -> None:
    """Refuse a strategy whose loss is no criterion of outputs and labels: nothing can be hidden from it.

    Raises:
        SettingError: Its class overrides `criterion`.
    """
    if type(strategy).criterion is not SupervisedProblem.criterion:
        raise SettingError(
            f"{type(strategy).__name__} has a loss of its own, in which the outputs of old classes cannot be hidden: "
            "give the plugin asymmetric=False"
        )


def stream_loss(strategy: Any, classes: Tensor, *, check: bool) -> Tensor:
    """Return the strategy's criterion of its batch, as if the model had no outputs but those of some classes.

    Args:
        strategy: After its forward pass.
        classes: (K,) int64, the experience's; classes of the batch that are not among them count, too.
        check: Whether to look at the value, for which a device has to be waited for.

    Raises:
        SettingError: The criterion weighs the outputs that are hidden.
    """
    criterion, output, labels = strategy._criterion, strategy.mb_output, strategy.mb_y
    if type(criterion) is nn.CrossEntropyLoss and criterion.label_smoothing:  # the share of others is for these classes
        own = torch.cat([classes, labels]).unique()
        weight = None if criterion.weight is None else criterion.weight[own]
        return F.cross_entropy(
            output[:, own],
            torch.searchsorted(own, labels),
            weight,
            reduction=criterion.reduction,
            label_smoothing=criterion.label_smoothing,
        )
    strategy.mb_output = _among(output, classes, labels)
    try:
        loss: Tensor = strategy.criterion()
    finally:
        strategy.mb_output = output
    if check and not _is_sound(loss, output):
        raise SettingError(
            f"the criterion {_name(criterion)} weighs the outputs of old classes, which an asymmetric loss hides: take "
            "nn.CrossEntropyLoss, or a stock strategy with CondensedReplayPlugin(asymmetric=False)"
        )
    return loss


def memory_loss(strategy: Any, output: Tensor, batch: Replayed, sampler: Sampler) -> Tensor:
    """Return the strategy's criterion of a batch from the memory.

    Cross-entropy takes the memory's probabilities; other criteria take its labels, in the form of the stream's.

    Raises:
        SettingError: The labels are soft, which the criterion was not made for; or the model has no output for one.
    """
    criterion = strategy._criterion
    wide = sampler.wide_targets(batch.targets, output.shape[1]).to(output.dtype)
    if _takes_probabilities(criterion, sampler.is_soft):
        return _value(criterion, output, wide)
    if sampler.is_soft:
        raise SettingError(
            f"the memory has soft labels, which the criterion {_name(criterion)} may not take: give the strategy "
            "nn.CrossEntropyLoss, or the buffer a condenser of hard labels"
        )
    labels = batch.labels.view(-1, *strategy.mb_y.shape[1:]).to(strategy.mb_y.dtype)
    return _value(criterion, output, labels)


def _is_sound(loss: Tensor, output: Tensor) -> bool:
    """Say that a loss took nothing from hidden outputs; of a model that gives no numbers, nothing is said."""
    most = torch.finfo(output.dtype).max ** 0.5
    return bool(loss.detach().abs().max() < most) or not bool(output.isfinite().all())


def _takes_probabilities(criterion: Any, soft: bool) -> bool:
    """Say whether a criterion means the same by probabilities as by labels, or is all there is for soft ones."""
    if criterion is F.cross_entropy:
        return True
    if type(criterion) is not nn.CrossEntropyLoss or criterion.ignore_index >= 0:
        return False
    return soft or criterion.weight is None  # a weighted mean divides by the weights of labels only


def _value(criterion: Any, output: Tensor, targets: Tensor) -> Tensor:
    value: Tensor = criterion(output, targets)
    return value


def _among(output: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """Return logits that leave nothing to the outputs of classes that are neither named nor in the batch."""
    others = torch.full_like(output[0], torch.finfo(output.dtype).min / 2)
    others[classes] = 0
    others[labels.flatten().long()] = 0
    return output + others


def _name(criterion: Any) -> str:
    return getattr(criterion, "__name__", type(criterion).__name__)

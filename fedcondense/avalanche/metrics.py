"""Bytes, seconds and images of a condensed buffer, as Avalanche metrics."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue, TensorImage
from avalanche.evaluation.metric_utils import get_metric_name
from torchvision.utils import make_grid

from fedcondense.avalanche.buffer import CondensedBuffer

__all__ = ["BufferBytes", "BufferImages", "CondensingSeconds", "buffer_metrics"]

_PER_CLASS = 8  # images of each class in a grid


def buffer_metrics(*, nbytes: bool = True, seconds: bool = True, images: bool = False) -> list[PluginMetric]:
    """Return metrics of the strategy's condensed buffer, logged after each training experience.

    Args:
        nbytes: ``Buffer_Bytes``: everything that persists, labels and record included.
        seconds: ``Condensing_Seconds``: the seconds of the last update.
        images: ``Buffer_Images``: a grid, one row per class, for loggers that take images (`TensorboardLogger`).
    """
    chosen = ((nbytes, BufferBytes), (seconds, CondensingSeconds), (images, BufferImages))
    return [metric() for wanted, metric in chosen if wanted]


class _BufferMetric(PluginMetric):
    name: str

    def __init__(self) -> None:
        super().__init__()
        self._value: Any = None

    def result(self, **kwargs: Any) -> Any:
        """Return the value of the last training experience."""
        return self._value

    def reset(self, **kwargs: Any) -> None:
        """Forget it."""
        self._value = None

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Measure the buffer, which the plugins before this one have updated."""
        buffer = _buffer_of(strategy)
        if buffer is None or not buffer.memory.names:
            return []
        self._value = self._measure(buffer)
        name = get_metric_name(self, strategy)
        return [MetricValue(self, name, self._value, strategy.clock.train_iterations)]

    def _measure(self, buffer: CondensedBuffer) -> Any:
        raise NotImplementedError

    def __str__(self) -> str:
        return self.name


class BufferBytes(_BufferMetric):
    """The bytes of everything that a buffer keeps."""

    name = "Buffer_Bytes"

    def _measure(self, buffer: CondensedBuffer) -> int:
        return buffer.nbytes


class CondensingSeconds(_BufferMetric):
    """The seconds that the last update of a buffer took."""

    name = "Condensing_Seconds"

    def _measure(self, buffer: CondensedBuffer) -> float:
        return buffer.seconds[-1]


class BufferImages(_BufferMetric):
    """The first images of each class, as a grid with one row per class."""

    name = "Buffer_Images"

    def _measure(self, buffer: CondensedBuffer) -> TensorImage:
        synthetic = buffer.memory.synthetic
        assert synthetic is not None
        images, targets = synthetic.pixels()
        labels = targets.argmax(1)
        rows = []
        for c in range(len(synthetic.classes)):
            row = images[labels == c][:_PER_CLASS]
            rows.append(torch.cat([row, row.new_zeros(_PER_CLASS - len(row), *row.shape[1:])]))
        return TensorImage(make_grid(torch.cat(rows), nrow=_PER_CLASS))


def _buffer_of(strategy: Any) -> CondensedBuffer | None:
    for holder in (strategy, *strategy.plugins):
        policy = getattr(holder, "storage_policy", None)
        if isinstance(policy, CondensedBuffer):
            return policy
    return None

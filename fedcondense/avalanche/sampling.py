"""Batches of a buffer as tensors: drawn, augmented and labelled at once, without a loader of single samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedcondense.avalanche.buffer import CondensedBuffer
from fedcondense.data.augment import Augmentation
from fedcondense.errors import SettingError
from fedcondense.randomness import stream

__all__ = ["EpochLoader", "Replayed", "Sampler"]


class Replayed(NamedTuple):
    """A batch from a buffer."""

    images: Tensor  # (B, C, H, W), augmented, in the stream's values and dtype
    targets: Tensor  # (B, K) probabilities over the buffer's classes
    labels: Tensor  # (B,) int64, the largest
    tasks: Tensor  # (B,) int64


class Sampler:
    """Draws batches of a buffer's images without replacement until all were seen, then again.

    Args:
        buffer: One that is not empty.
        device: Of the batches.
        augment: Draw one augmentation per image, of those that the buffer names.
        seed: With the buffer's own, determines order and augmentation.
    """

    def __init__(self, buffer: CondensedBuffer, device: torch.device, augment: bool, seed: int) -> None:
        decoded = buffer.working
        layout = buffer.layout
        assert decoded is not None
        assert layout is not None
        self.decoded = decoded.to(device)
        self.layout = layout
        self.operations = buffer.operations if augment else ()
        self.is_soft = bool((decoded.targets.amax(1) < 1).any())
        self.generator = stream(buffer.memory.seed, "replay", seed)
        self.largest = int(decoded.labels.max())
        self.classes = len(torch.stack([decoded.labels, decoded.tasks]).unique(dim=1)[0])  # groups of a class are one
        self._order = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.decoded)

    def draw(self, size: int) -> Replayed:
        """Draw a batch, of all images at most."""
        size = min(size, len(self))
        while len(self._order) < size:
            self._order = torch.cat([self._order, torch.randperm(len(self), generator=self.generator)])
        index, self._order = self._order[:size], self._order[size:]
        return self.take(index)

    def take(self, index: Tensor) -> Replayed:
        """Return the images at `index`, augmented."""
        held = self.decoded
        targets, labels, tasks = held.targets, held.labels, held.tasks
        index = index.to(held.images.device, non_blocking=True)
        batch = held.take(index)
        if self.operations:
            mean, std = held.mean.view(1, -1, 1, 1), held.std.view(1, -1, 1, 1)
            record = Augmentation.draw(self.operations, len(batch), self.generator)
            batch = record((batch - mean) / std) * std + mean
        column = targets[index].argmax(1)
        return Replayed(self.layout.cast(batch), targets[index], labels[column], tasks[column])

    def check(self, outputs: int) -> None:
        """Refuse a head that has no output for a label of the buffer.

        Raises:
            SettingError: It has none.
        """
        if self.largest >= outputs:
            raise SettingError(
                f"the buffer holds label {self.largest}, the model has {outputs} outputs; widen its head"
            )

    def wide_targets(self, targets: Tensor, outputs: int) -> Tensor:
        """Return probabilities over a head's outputs, (B, outputs), from those over the buffer's classes (`check`)."""
        self.check(outputs)
        return targets.new_zeros(len(targets), outputs).index_add_(1, self.decoded.labels, targets)


class EpochLoader:
    """One pass over a buffer in batches that look as the stream's do; a strategy's `dataloader`.

    Args:
        sampler: Of the buffer.
        batch_size: Images per batch.
        tasks: Whether the stream's batches have task labels.
    """

    def __init__(self, sampler: Sampler, batch_size: int, tasks: bool) -> None:
        self.sampler, self.batch_size, self.tasks = sampler, batch_size, tasks
        self.batch: Replayed | None = None  # given last

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[Any]]:
        for index in torch.randperm(len(self.sampler), generator=self.sampler.generator).split(self.batch_size):
            self.batch = batch = self.sampler.take(index)
            labels = self.sampler.layout.label_form(batch.labels)
            yield [batch.images, labels, *([batch.tasks] if self.tasks else [])]

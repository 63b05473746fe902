"""Our data as Avalanche's streams, without the downloads of its own benchmarks."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.benchmarks import nc_benchmark
from torch import Tensor
from torch.utils.data import Dataset

from fedcondense.ambient import in_own_state
from fedcondense.data.images import Data

__all__ = ["NormalisedImages", "split_benchmark"]


class NormalisedImages(Dataset[tuple[Tensor, int]]):
    """Images of a `Data` as Avalanche reads a data set: normalised float32 (C, H, W) and an int, with `targets`.

    Args:
        data: Held in memory once more, as floating point: 4 bytes per value.
    """

    @in_own_state
    def __init__(self, data: Data) -> None:
        self.images = data.batch().images
        self.targets: list[int] = data.labels.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


def split_benchmark(
    train: Data, test: Data, n_experiences: int = 5, *, seed: int = 0, task_labels: bool = False
) -> Any:
    """Return a class-incremental benchmark (`nc_benchmark`): the classes in a random order, in equal experiences.

    >>> train, test = fedcondense.load_data("digits")  # doctest: +SKIP
    >>> benchmark = split_benchmark(train, test, 5)  # doctest: +SKIP

    Args:
        train: Becomes the train stream.
        test: Becomes the test stream, in the same order.
        n_experiences: It must divide the number of classes.
        seed: Of the order of classes.
        task_labels: Whether each experience is a task of its own, with a task label; class labels stay.
    """
    order = torch.randperm(len(train.spec.classes), generator=torch.Generator().manual_seed(seed)).tolist()
    datasets = NormalisedImages(train), NormalisedImages(test)
    return nc_benchmark(*datasets, n_experiences, task_labels=task_labels, fixed_class_order=order)

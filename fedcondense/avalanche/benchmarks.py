"""Our data as Avalanche's streams, without the downloads of its own benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark, with_classes_timeline
from avalanche.benchmarks.utils import DataAttribute, TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from torch import Tensor
from torch.utils.data import Dataset

from fedcondense.ambient import in_own_state
from fedcondense.avalanche.splits import check_split
from fedcondense.data.images import Data
from fedcondense.data.vocabulary import by_name
from fedcondense.errors import DataError, SettingError

__all__ = ["NormalisedImages", "domain_benchmark", "split_benchmark"]


class NormalisedImages(Dataset[tuple[Tensor, int]]):
    """Images of a `Data` as Avalanche reads a data set: normalised float32 (C, H, W) and an int, with `targets`.

    Args:
        data: Stays as it is, a byte per value: an image is normalised when it is asked for.
    """

    def __init__(self, data: Data) -> None:
        self.data = data
        self.targets: list[int] = data.labels.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    @in_own_state
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.data.images[index : index + 1].float().div_(255)
        return self.data.spec.normalise(image)[0], self.targets[index]


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

    Raises:
        SettingError: `n_experiences` does not divide the number of classes.
        DataError: A class has no images in one of the streams.
    """
    check_split(train.spec.name, train.spec.classes, train.counts.tolist(), test.counts.tolist(), n_experiences)
    order = torch.randperm(len(train.spec.classes), generator=torch.Generator().manual_seed(seed)).tolist()
    datasets = NormalisedImages(train), NormalisedImages(test)
    return nc_benchmark(*datasets, n_experiences, task_labels=task_labels, fixed_class_order=order)


def domain_benchmark(domains: Sequence[tuple[str, Data, Data]], *, task_labels: bool = False) -> Any:
    """Return a domain-incremental benchmark: the same classes in every experience, each time from another source.

    Classes are matched by name and have the labels of the first domain; a domain may lack some.

    >>> domains = [(name, *fedcondense.load_data(f"folder:{name}", size=64)) for name in ("field", "house")]
    ... # doctest: +SKIP
    >>> benchmark = domain_benchmark(domains)  # doctest: +SKIP

    Args:
        domains: A name, training and test images of each, in the order in which they come.
        task_labels: Whether each domain is a task of its own; class labels stay.

    Raises:
        DataError: A class that the first domain does not have, or images of another shape.
        SettingError: No domains, or two of one name.
    """
    names = [name for name, _, _ in domains]
    if not names or len(set(names)) < len(names):
        raise SettingError(
            f"domains called {', '.join(names) or 'nothing'}; needed: one or more, each with its own name"
        )
    spec = domains[0][1].spec
    streams: dict[str, list[Any]] = {"train": [], "test": []}
    for place, (name, *pair) in enumerate(domains):
        for kind, data in zip(streams, pair, strict=True):
            if data.spec.shape != spec.shape:
                raise DataError(
                    f"{name}: images of {data.spec.shape}, those of {names[0]} are {spec.shape}; give all one size="
                )
            same = by_name(data.named(name), spec.classes)
            tasks = ConstantSequence(place if task_labels else 0, len(same))
            attributes = [DataAttribute(same.labels.tolist(), "targets")]
            attributes.append(DataAttribute(tasks, "targets_task_labels", use_in_getitem=True))
            samples = [NormalisedImages(same)]
            streams[kind].append(TaskAwareSupervisedClassificationDataset(samples, data_attributes=attributes))
    return with_classes_timeline(benchmark_from_datasets(**streams))

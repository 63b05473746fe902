"""Small streams of digits in each of Avalanche's shapes, and what the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

pytest.importorskip("avalanche")

import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark
from avalanche.benchmarks.scenarios.supervised import class_incremental_benchmark
from avalanche.benchmarks.scenarios.task_aware import task_incremental_benchmark
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.logging import BaseLogger
from avalanche.models import SimpleMLP
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn
from torch.utils.data import Dataset

from fedcondense.data.images import Data, DataSet
from fedcondense.data.loading import load_data

PER_CLASS = 60  # real images of each class: enough to learn from, quick to train on


class Images(Dataset[tuple[Tensor, Any]]):
    """Images in [0, 1] with whole numbers for labels, as torchvision's data sets give them after `ToTensor`."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.targets = images, labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


def plain(images: Tensor, labels: Sequence[int] | Tensor) -> AvalancheDataset:
    """Return samples of two values, image and label."""
    labels = torch.as_tensor(labels)
    return AvalancheDataset([Images(images, labels)], data_attributes=[DataAttribute(labels.tolist(), "targets")])


def pixels(data: Data) -> Tensor:
    """Return images (N, 1, 8, 8) in [0, 1]."""
    return data.images.float() / 255


class Streams:
    """Benchmarks of the digits, each with a train and a test stream."""

    plain = staticmethod(plain)
    pixels = staticmethod(pixels)

    def __init__(self, digits: DataSet, classes: int = 10) -> None:
        train, test = digits.train, digits.test
        train = train.subset(train.per_class(PER_CLASS, torch.Generator().manual_seed(0)))
        self.train, self.test = (data.subset(data.labels < classes) for data in (train, test))
        self.classes = classes

    def splits(self) -> dict[str, AvalancheDataset]:
        return {name: plain(pixels(data), data.labels) for name, data in (("train", self.train), ("test", self.test))}

    def with_tasks(self, experiences: int = 5) -> Any:
        """`nc_benchmark`: samples of image, label and a task label that is always 0."""
        train, test = self.splits().values()
        order = list(range(self.classes))
        return nc_benchmark(train, test, n_experiences=experiences, task_labels=False, fixed_class_order=order)

    def without_tasks(self, experiences: int = 5) -> Any:
        """`class_incremental_benchmark`: samples of image and label."""
        order = list(range(self.classes))
        return class_incremental_benchmark(self.splits(), class_order=order, num_experiences=experiences)

    def tasks(self, experiences: int = 5) -> Any:
        """A task a pair of classes, with its label in each sample."""
        train, test = self.splits().values()
        order = list(range(self.classes))
        return nc_benchmark(train, test, n_experiences=experiences, task_labels=True, fixed_class_order=order)

    def domains(self) -> Any:
        """All classes upright, then inverted, then turned a quarter."""
        looks: list[Callable[[Tensor], Tensor]] = [lambda x: x, lambda x: 1 - x, lambda x: x.rot90(1, (2, 3))]
        streams = {
            name: [plain(look(pixels(data)), data.labels) for look in looks]
            for name, data in (("train", self.train), ("test", self.test))
        }
        return benchmark_from_datasets(**streams)

    def repeated_tasks(self) -> Any:
        """The domains as three tasks with the same labels."""
        return task_incremental_benchmark(self.domains())

    def of(self, images: Tensor, labels: Sequence[int] | Tensor) -> Any:
        """One experience of these samples."""
        return benchmark_from_datasets(train=[plain(images, labels)]).train_stream[0]


@pytest.fixture(scope="session")
def digits() -> DataSet:
    return load_data("digits")


@pytest.fixture(scope="session")
def streams(digits: DataSet) -> Streams:
    return Streams(digits)


@pytest.fixture(scope="session")
def few(digits: DataSet) -> Streams:
    """Four classes: for what does not depend on how many there are."""
    return Streams(digits, classes=4)


class Setting:
    """A model with its optimizer, as keyword arguments of a strategy, and what it gets right."""

    def __init__(self, classes: int = 10, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model: nn.Module = SimpleMLP(num_classes=classes, input_size=64, hidden_size=64, drop_rate=0.0)

    def __call__(self, *metrics: Any, **more: Any) -> dict[str, Any]:
        """Return what every strategy asks for."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        evaluator = EvaluationPlugin(*metrics, loggers=[BaseLogger()])
        told: dict[str, Any] = {"evaluator": evaluator, "train_mb_size": 16, "train_epochs": 4}
        return {"model": self.model, "optimizer": optimizer, **told, **more}


@pytest.fixture
def setting() -> Callable[..., Setting]:
    return Setting


@torch.no_grad()
def right(strategy: Any, data: Data) -> float:
    """Return the share of images that a strategy's model gets right."""
    found = strategy.model.eval()(pixels(data)).argmax(1)
    return float((found == data.labels).float().mean())


@pytest.fixture(scope="session")
def accuracy() -> Callable[[Any, Data], float]:
    return right

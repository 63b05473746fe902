"""The data of the continual experiment as Avalanche's streams: classes two by two, rotated domains, or fifties."""

from __future__ import annotations

from typing import Any

import torch
from continual_protocols import Protocol
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

import fedcondense as fc
from fedcondense.randomness import stream


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Normalised images in memory, as Avalanche reads a data set."""

    def __init__(self, data: fc.Data) -> None:
        self.images = data.batch().images
        self.targets = data.labels.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], self.targets[index]


def load(protocol: Protocol, seed: int) -> tuple[list[fc.Data], fc.Data]:
    """Return the training data, by domain, and the test data of all of them."""
    train, test = fc.load_data(protocol.data)
    if protocol.stream != "domains":
        if protocol.per_class:
            rows = train.per_class(protocol.per_class, stream(seed))
            if protocol.held_out:
                left = torch.ones(len(train.labels), dtype=torch.bool).index_fill_(0, rows, False)
                rest = train.subset(left.nonzero().flatten())
                test = rest.subset(rest.per_class(protocol.held_out, stream(seed, 1)))
            train = train.subset(rows)
        return [train], test
    domains, tests = [], []
    for number in range(protocol.experiences):  # each domain turns other images, by 20 degrees more
        chosen = train.subset(train.per_class(protocol.per_class, stream(seed, number)))
        domains.append(turned(chosen, 20.0 * number))
        tests.append(turned(test.subset(test.per_class(200, stream(0))), 20.0 * number))
    joined = torch.cat([t.images for t in tests]), torch.cat([t.labels for t in tests])
    return domains, fc.Data(*joined, test.spec)


def turned(data: fc.Data, degrees: float) -> fc.Data:
    return fc.Data(rotate(data.images, degrees, InterpolationMode.BILINEAR), data.labels, data.spec)


def experiences(protocol: Protocol, domains: list[fc.Data], test: fc.Data, seed: int) -> tuple[Any, list[Any]]:
    """Return Avalanche's benchmark and its training stream."""
    from avalanche.benchmarks import dataset_benchmark, nc_benchmark, split_online_stream

    if protocol.stream == "domains":
        benchmark = dataset_benchmark([Images(domain) for domain in domains], [Images(test)])
        return benchmark, list(benchmark.train_stream)
    classes = len(test.spec.classes)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed)).tolist()
    told = {"task_labels": False, "fixed_class_order": order}
    benchmark = nc_benchmark(Images(domains[0]), Images(test), protocol.experiences, **told)
    if protocol.stream == "online":
        torch.manual_seed(seed)
        return benchmark, split_online_stream(benchmark.train_stream, experience_size=50)
    return benchmark, list(benchmark.train_stream)

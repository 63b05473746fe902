"""What all rules that split data share: checked labels and seeds, the index of each class, the resulting partition."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.data.images import Data
from fedcondense.data.partition import Partition
from fedcondense.errors import DataError, SettingError

__all__ = [
    "Integers",
    "Labelled",
    "at_least_one",
    "checked_generator",
    "checked_labels",
    "class_names",
    "index_by_class",
    "shuffle_each",
    "to_partition",
]

Integers = npt.NDArray[np.int64]
Labelled = Data | Tensor


@in_own_state
def checked_labels(data: Labelled, num_partitions: int) -> Integers:
    """Return labels as (N,) int64, at least one per client."""
    at_least_one("num_partitions", num_partitions)
    labels = (data.labels if isinstance(data, Data) else torch.as_tensor(data)).cpu().numpy()
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        given = f"{labels.dtype} {labels.shape}"
        raise DataError(f"labels to split are {given}; needed: (N,) whole numbers from 0, one an example")
    if num_partitions > len(labels):
        raise SettingError(
            f"{num_partitions} clients but {len(labels)} examples; needed: at most one client an example"
        )
    return labels.astype(np.int64)


def index_by_class(labels: Integers) -> list[Integers]:
    """Return the indices of each class that occurs, by label."""
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def class_names(data: Labelled, labels: Integers) -> tuple[str, ...]:
    """Return the names of the data's classes, or numbers up to the largest label."""
    return data.spec.classes if isinstance(data, Data) else tuple(map(str, range(labels.max(initial=-1) + 1)))


def at_least_one(name: str, value: int) -> int:
    """Return a number of things, or refuse it by its name."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise SettingError(f"{name} is {value!r}; needed: a whole number of at least 1")
    return int(value)


def checked_generator(seed: int) -> np.random.Generator:
    """Return the generator that a rule draws from."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise SettingError(f"seed is {seed!r}; needed: a whole number from 0")
    return np.random.default_rng(seed)


def shuffle_each(held: list[Integers], rng: np.random.Generator) -> list[Integers]:
    """Shuffle each client's indices in place, in order of clients."""
    for part in held:
        rng.shuffle(part)
    return held


@in_own_state
def to_partition(data: Labelled, labels: Integers, held: list[Integers], by: str, **settings: Any) -> Partition:
    """Return the indices of all clients as a `Partition`; `settings` are what its rule was given."""
    classes = class_names(data, labels)
    counts = np.stack([np.bincount(labels[part], minlength=len(classes)) for part in held])
    name = data.spec.name if isinstance(data, Data) else "labels"
    indices = tuple(torch.from_numpy(part) for part in held)
    return Partition(indices, torch.from_numpy(counts), name, classes, by, settings)

"""The splits that leave each client with few classes: shards of sorted labels, or a number of classes per client."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import numpy as np

from fedcondense.data.partition import Partition
from fedcondense.data.splitting import (
    Integers,
    Labelled,
    at_least_one,
    checked_generator,
    checked_labels,
    index_by_class,
    shuffle_each,
    to_partition,
)
from fedcondense.errors import SettingError, look_up

__all__ = ["partition_classes", "partition_shards"]

_LOG = logging.getLogger(__name__)


def partition_shards(
    data: Labelled, num_partitions: int = 10, *, num_shards_per_partition: int = 2, seed: int = 42
) -> Partition:
    """Sort by label, cut into equal shards and deal them out, as `ShardPartitioner` does.

    McMahan et al., AISTATS 2017, https://arxiv.org/abs/1602.05629. Examples that do not fill a shard are left out.

    Args:
        data: What is split, or its labels, (N,) of integers.
        num_partitions: How many clients there are.
        num_shards_per_partition: Shards per client; 2, as published, mostly means two classes per client.
        seed: Equal seeds, equal splits.
    """
    labels, rng = checked_labels(data, num_partitions), checked_generator(seed)
    used = num_partitions * at_least_one("num_shards_per_partition", num_shards_per_partition)
    if used > len(labels):
        raise SettingError(
            f"{used} shards need as many examples, but there are {len(labels)}; take fewer shards or clients"
        )
    size = len(labels) // used
    order = labels.argsort(kind="stable")
    dealt = rng.permutation(len(labels) // size)[:used].reshape(num_partitions, -1)
    held = [np.concatenate([order[s * size : (s + 1) * size] for s in mine]) for mine in dealt]
    settings = {"num_shards_per_partition": num_shards_per_partition, "seed": seed}
    return to_partition(data, labels, shuffle_each(held, rng), "shards", **settings)


def partition_classes(
    data: Labelled,
    num_partitions: int = 10,
    *,
    num_classes_per_partition: int = 2,
    class_assignment_mode: str = "random",
    seed: int = 42,
) -> Partition:
    """Give each client some classes and split each class evenly among its holders, as `PathologicalPartitioner` does.

    Args:
        data: What is split, or its labels, (N,) of integers.
        num_partitions: How many clients there are.
        num_classes_per_partition: Classes per client, at most as many as occur.
        class_assignment_mode: ``"random"``: each client draws; classes that nobody draws are left out, and named in the
            log. ``"deterministic"``: client i takes classes i, i+1, ... modulo their number (FedD3).
            ``"first-deterministic"``: client i takes class i and draws the others (NIID-Bench).
        seed: Equal seeds, equal splits.
    """
    labels, rng = checked_labels(data, num_partitions), checked_generator(seed)
    members = index_by_class(labels)
    k, take = len(members), at_least_one("num_classes_per_partition", num_classes_per_partition)
    if take > k:
        raise SettingError(
            f"{take} classes a client, but {k} classes occur in the data; lower num_classes_per_partition"
        )
    holdings = [_assign(client, k, take, class_assignment_mode, rng) for client in range(num_partitions)]
    held: list[list[Integers]] = [[] for _ in range(num_partitions)]
    for label, index in enumerate(members):
        holders = [client for client, mine in enumerate(holdings) if label in mine]
        if len(holders) > len(index):
            raise SettingError(
                f"class {labels[index[0]]} goes to {len(holders)} clients but has {len(index)} examples; "
                "lower num_partitions or num_classes_per_partition, or assign classes deterministically"
            )
        if not holders:
            _LOG.warning("class %d is at no client; its %d examples are left out", labels[index[0]], len(index))
        for client, piece in zip(holders, np.array_split(index, max(len(holders), 1)), strict=False):
            held[client].append(piece)
    settings = {"num_classes_per_partition": take, "class_assignment_mode": class_assignment_mode, "seed": seed}
    return to_partition(data, labels, shuffle_each([np.concatenate(part) for part in held], rng), "classes", **settings)


def _assign(client: int, classes: int, take: int, mode: str, rng: np.random.Generator) -> list[int]:
    """Return the classes of one client, drawn as flwr-datasets draws them."""
    modes: dict[str, Callable[[], Iterable[int]]] = {
        "random": lambda: rng.choice(classes, size=take, replace=False).tolist(),
        "deterministic": lambda: [(client + i) % classes for i in range(take)],
        "first-deterministic": lambda: _first_then_random(client % classes, classes, take, rng),
    }
    return list(look_up("class assignment mode", mode, modes)())


def _first_then_random(first: int, classes: int, take: int, rng: np.random.Generator) -> list[int]:
    """Return `first` and other classes, drawn one by one until they differ."""
    mine = [first]
    while len(mine) < take:
        label = int(rng.integers(classes))
        if label not in mine:
            mine.append(label)
    return mine

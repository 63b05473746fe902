"""Rules that split one data set among clients, by name.

Each rule draws from ``numpy.random.default_rng(seed)`` in the order in which flwr-datasets 0.6 draws and has its
argument names: a seed gives the indices that its partitioners give (iid apart), without that dependency.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from fedcondense.data.dirichlet import partition_client_dirichlet, partition_dirichlet
from fedcondense.data.few_classes import partition_classes, partition_shards
from fedcondense.data.index_lists import partition_from_file
from fedcondense.data.partition import Partition, draw_partition
from fedcondense.data.splitting import (
    Integers,
    Labelled,
    checked_generator,
    checked_labels,
    class_names,
    shuffle_each,
    to_partition,
)
from fedcondense.errors import DataError, SettingError, look_up

__all__ = [
    "FROM_FILE",
    "PARTITIONS",
    "Partition",
    "draw_partition",
    "partition",
    "partition_classes",
    "partition_client_dirichlet",
    "partition_dirichlet",
    "partition_from_counts",
    "partition_from_file",
    "partition_iid",
    "partition_shards",
]

FROM_FILE = "file:"
"""What stands before the path of a file with each client's indices, in the place of a rule's name."""


def partition(
    data: Labelled,
    num_partitions: int = 10,
    by: str = "dirichlet",
    *,
    alpha: float | Sequence[float] = 0.5,
    seed: int = 42,
    min_partition_size: int = 10,
    self_balancing: bool = False,
    num_shards_per_partition: int = 2,
    num_classes_per_partition: int = 2,
    class_assignment_mode: str = "random",
    counts: Sequence[Sequence[int]] | Tensor | None = None,
) -> Partition:
    """Split data among clients by a rule's name or a file; arguments that the rule does not have are left aside.

    Args:
        data: What is split, or its labels, (N,) of integers.
        num_partitions: How many clients there are; for ``"counts"``, the matrix has its number of rows.
        by: A name in `PARTITIONS`; its function says what the other arguments mean. Or ``"file:PATH"``, a JSON file of
            each client's indices, such as other people publish (`partition_from_file`).
        alpha: For the two Dirichlets.
        seed: For all of them.
        min_partition_size: For ``"dirichlet"``.
        self_balancing: For ``"dirichlet"``.
        num_shards_per_partition: For ``"shards"``.
        num_classes_per_partition: For ``"classes"``.
        class_assignment_mode: For ``"classes"``.
        counts: For ``"counts"``.

    Example:
        >>> import torch
        >>> labels = torch.arange(1000) % 10
        >>> partition(labels, 5, "dirichlet", alpha=0.1, seed=1).sizes.tolist()
        [38, 283, 169, 361, 149]
    """
    given = locals()
    if by.startswith(FROM_FILE):
        return partition_from_file(data, num_partitions, path=by.removeprefix(FROM_FILE))
    rule = look_up("partition", by, PARTITIONS)
    return rule(**{name: given[name] for name in inspect.signature(rule).parameters if name in given})


def partition_iid(data: Labelled, num_partitions: int = 10, *, seed: int = 42) -> Partition:
    """Shuffle and deal out: sizes differ by one at most. No client is left without data."""
    labels, rng = checked_labels(data, num_partitions), checked_generator(seed)
    held = np.array_split(rng.permutation(len(labels)), num_partitions)
    return to_partition(data, labels, held, "iid", seed=seed)


def partition_from_counts(
    data: Labelled,
    num_partitions: int | None = None,
    *,
    counts: Sequence[Sequence[int]] | Tensor | None,
    seed: int = 42,
) -> Partition:
    """Give each client the number of examples of each class that a matrix says, as a published table does.

    Args:
        data: What is split, or its labels, (N,) of integers.
        num_partitions: The matrix's number of rows, if it is to be checked.
        counts: (num_partitions, K), whole numbers; a row of zeros is a client without data, and examples that are not
            asked for are left out.
        seed: Which examples of a class go where.
    """
    if counts is None:
        raise SettingError("partition by counts needs `counts`, a row a client with a number for each class")
    labels, rng = checked_labels(data, 1), checked_generator(seed)
    classes = class_names(data, labels)
    asked = _matrix(counts)
    if num_partitions not in (None, len(asked)) or asked.shape[1] != len(classes):
        needed = f"({len(asked) if num_partitions is None else num_partitions}, {len(classes)})"
        raise SettingError(f"counts has shape {asked.shape}; needed: {needed}, a row a client and a column a class")
    there = np.bincount(labels, minlength=len(classes))
    short = np.flatnonzero(asked.sum(0) > there)
    if len(short):
        first = ", ".join(f"{classes[c]}: {asked[:, c].sum()} asked, {there[c]} there" for c in short[:3])
        raise DataError(f"counts ask for more than there is in {len(short)} classes ({first}); lower those columns")
    held: list[list[Integers]] = [[np.empty(0, dtype=np.int64)] for _ in asked]
    for label in range(len(classes)):
        index = rng.permutation(np.flatnonzero(labels == label))
        for part, piece in zip(held, np.split(index, asked[:, label].cumsum()), strict=False):
            part.append(piece)
    return to_partition(data, labels, shuffle_each([np.concatenate(part) for part in held], rng), "counts", seed=seed)


PARTITIONS: dict[str, Callable[..., Partition]] = {
    "iid": partition_iid,
    "dirichlet": partition_dirichlet,
    "client-dirichlet": partition_client_dirichlet,
    "shards": partition_shards,
    "classes": partition_classes,
    "counts": partition_from_counts,
}


def _matrix(counts: Sequence[Sequence[int]] | Tensor) -> Integers:
    try:
        asked = np.asarray(counts.cpu() if isinstance(counts, Tensor) else counts)
    except ValueError:
        raise SettingError("counts has rows of unequal length; needed: a row a client, a column a class") from None
    if asked.ndim != 2 or asked.dtype.kind not in "iu" or (asked < 0).any():
        raise SettingError(f"counts is {asked.dtype} {asked.shape}; needed: whole numbers >= 0, a row a client")
    return asked.astype(np.int64)

"""Who holds what: rules that split one data set among clients, with the count matrix, its hash and its picture.

Each rule draws from ``numpy.random.default_rng(seed)`` in the order in which flwr-datasets 0.6 draws and has its
argument names: a seed gives the indices that its partitioners give (iid apart), without that dependency. The two
Dirichlets are different experiments at the same `alpha`: `partition_dirichlet` spreads each class over clients, of
unequal size, and `partition_client_dirichlet` draws each client's classes, at equal sizes.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedcondense.data.images import Data
from fedcondense.data.partition import Partition, draw_partition
from fedcondense.errors import DataError, SettingError, look_up

__all__ = [
    "PARTITIONS",
    "Partition",
    "draw_partition",
    "partition",
    "partition_classes",
    "partition_client_dirichlet",
    "partition_dirichlet",
    "partition_from_counts",
    "partition_iid",
    "partition_shards",
]

log = logging.getLogger(__name__)

Integers = npt.NDArray[np.int64]
Labelled = Data | Tensor

_TRIES = 1000  # flwr-datasets gives up after 11; where it succeeds, so do we, with the same indices


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
    """Split data among clients by a rule's name; arguments that the rule does not have are left aside.

    Args:
        data: What is split, or its labels, (N,) of integers.
        num_partitions: How many clients there are; for ``"counts"``, the matrix has its number of rows.
        by: A name in `PARTITIONS`; its function says what the other arguments mean.
        alpha: For the two Dirichlets.
        seed: For all of them.
        min_partition_size: For ``"dirichlet"``.
        self_balancing: For ``"dirichlet"``.
        num_shards_per_partition: For ``"shards"``.
        num_classes_per_partition: For ``"classes"``.
        class_assignment_mode: For ``"classes"``.
        counts: For ``"counts"``.

    Example:
        >>> labels = torch.arange(1000) % 10
        >>> partition(labels, 5, "dirichlet", alpha=0.1, seed=1).sizes.tolist()
        [38, 283, 169, 361, 149]
    """
    given = locals()
    rule = look_up("partition", by, PARTITIONS)
    return rule(**{name: given[name] for name in inspect.signature(rule).parameters if name in given})


def partition_iid(data: Labelled, num_partitions: int = 10, *, seed: int = 42) -> Partition:
    """Shuffle and deal out: sizes differ by one at most. No client is left without data."""
    labels, rng = _labels(data, num_partitions), _generator(seed)
    parts = np.array_split(rng.permutation(len(labels)), num_partitions)
    return _wrap(data, labels, parts, "iid", seed=seed)


def partition_dirichlet(
    data: Labelled,
    num_partitions: int = 10,
    *,
    alpha: float | Sequence[float] = 0.5,
    seed: int = 42,
    min_partition_size: int = 10,
    self_balancing: bool = False,
) -> Partition:
    """Spread each class over the clients by a draw of Dir(alpha), as `DirichletPartitioner` does.

    Yurochkin et al., ICML 2019, https://arxiv.org/abs/1905.12022; NIID-Bench's split with `self_balancing`. Sizes are
    unequal, and at a small `alpha` most clients lack most classes. All is drawn anew until the smallest client has
    enough.

    Args:
        data: What is split, or its labels, (N,) of integers.
        num_partitions: How many clients there are.
        alpha: Concentration, above 0, or one a client; towards 0, each class goes to one client.
        seed: Equal seeds, equal splits.
        min_partition_size: Examples that each client gets at least; 0 allows clients without data.
        self_balancing: Give nothing more to a client that already holds more than the average.
    """
    labels, rng = _labels(data, num_partitions), _generator(seed)
    concentration = _concentration(alpha, num_partitions, "client")
    if min_partition_size * num_partitions > len(labels):
        needed = f"{num_partitions} clients of at least {min_partition_size}"
        raise SettingError(
            f"{needed} need more than the {len(labels)} examples; lower min_partition_size or num_partitions"
        )
    members = _by_class(labels)
    for _ in range(_TRIES):
        parts: list[list[Integers]] = [[] for _ in range(num_partitions)]
        sizes = np.zeros(num_partitions, dtype=np.int64)
        for index in members:
            shares = rng.dirichlet(concentration)
            if self_balancing:
                shares[sizes > len(labels) / num_partitions] = 0
                shares /= sum(shares.tolist())  # added one by one, as flwr-datasets does: the last bit moves a border
            borders = (shares.cumsum() * len(index)).astype(np.int64)[:-1]
            for part, piece in zip(parts, np.split(index, borders), strict=True):
                part.append(piece)
            sizes = np.array([sum(map(len, part)) for part in parts])
        if sizes.min() >= min_partition_size:
            break
    else:
        tried = f"{_TRIES} draws of Dir({alpha}) left a client of {num_partitions} with fewer than {min_partition_size}"
        raise SettingError(
            f"{tried} of {len(labels)} examples; raise alpha, or lower min_partition_size or num_partitions"
        )
    settings = {
        "alpha": alpha,
        "seed": seed,
        "min_partition_size": min_partition_size,
        "self_balancing": self_balancing,
    }
    return _wrap(data, labels, _shuffled([np.concatenate(part) for part in parts], rng), "dirichlet", **settings)


def partition_client_dirichlet(
    data: Labelled, num_partitions: int = 10, *, alpha: float | Sequence[float] = 0.5, seed: int = 42
) -> Partition:
    """Draw each client's class shares from Dir(alpha), at equal sizes, as `InnerDirichletPartitioner` does.

    Acar et al. (FedDyn), ICLR 2021, https://arxiv.org/abs/2111.04263, after Hsu et al., 2019. Examples are dealt one
    by one until none is left; a class that has run out leaves the shares, so the last clients take what remains. Sizes
    differ by one at most.

    Args:
        data: What is split, or its labels, (N,) of integers.
        num_partitions: How many clients there are.
        alpha: Concentration, above 0, or one for each class that occurs.
        seed: Equal seeds, equal splits.
    """
    labels, rng = _labels(data, num_partitions), _generator(seed)
    members = _by_class(labels)
    left = np.array([len(index) for index in members])
    shares = rng.dirichlet(_concentration(alpha, len(members), "class"), size=num_partitions)
    room = [len(labels) // num_partitions + (i < len(labels) % num_partitions) for i in range(num_partitions)]
    parts = [np.empty(size, dtype=np.int64) for size in room]
    waiting = list(range(num_partitions))
    unplaced = len(labels)
    while unplaced:
        client = waiting[rng.integers(len(waiting))]
        if not room[client]:
            waiting.remove(client)
            continue
        room[client] -= 1
        unplaced -= 1
        while True:
            steps = shares[client].cumsum()
            label = int((steps / steps[-1]).searchsorted(rng.random(), side="right"))
            if left[label]:
                break
            shares[:, label] = 0
            shares[shares.sum(1) == 0] = left > 0  # a client whose classes have all run out takes what there is
            shares /= shares.sum(1, keepdims=True)
        left[label] -= 1
        parts[client][room[client]] = members[label][left[label]]
    return _wrap(data, labels, _shuffled(parts, rng), "client-dirichlet", alpha=alpha, seed=seed)


def partition_shards(
    data: Labelled, num_partitions: int = 10, *, num_shards_per_partition: int = 2, seed: int = 42
) -> Partition:
    """Sort by label, cut into equal shards and deal them out, as `ShardPartitioner` does.

    McMahan et al., AISTATS 2017, https://arxiv.org/abs/1602.05629. Examples that do not fill a shard are left out.

    Args:
        data: What is split, or its labels, (N,) of integers.
        num_partitions: How many clients there are.
        num_shards_per_partition: Shards a client; 2, as published, mostly means two classes a client.
        seed: Equal seeds, equal splits.
    """
    labels, rng = _labels(data, num_partitions), _generator(seed)
    used = num_partitions * _at_least_one("num_shards_per_partition", num_shards_per_partition)
    if used > len(labels):
        raise SettingError(
            f"{used} shards need as many examples, but there are {len(labels)}; take fewer shards or clients"
        )
    size = len(labels) // used
    order = labels.argsort(kind="stable")
    dealt = rng.permutation(len(labels) // size)[:used].reshape(num_partitions, -1)
    parts = [np.concatenate([order[s * size : (s + 1) * size] for s in mine]) for mine in dealt]
    settings = {"num_shards_per_partition": num_shards_per_partition, "seed": seed}
    return _wrap(data, labels, _shuffled(parts, rng), "shards", **settings)


def partition_classes(
    data: Labelled,
    num_partitions: int = 10,
    *,
    num_classes_per_partition: int = 2,
    class_assignment_mode: str = "random",
    seed: int = 42,
) -> Partition:
    """Give each client some classes and split a class evenly among its holders, as `PathologicalPartitioner` does.

    Args:
        data: What is split, or its labels, (N,) of integers.
        num_partitions: How many clients there are.
        num_classes_per_partition: Classes a client, at most as many as occur.
        class_assignment_mode: ``"random"``: each client draws; classes that nobody draws are left out, and named in the
            log. ``"deterministic"``: client i takes classes i, i+1, ... modulo their number (FedD3).
            ``"first-deterministic"``: client i takes class i and draws the others (NIID-Bench).
        seed: Equal seeds, equal splits.
    """
    labels, rng = _labels(data, num_partitions), _generator(seed)
    members = _by_class(labels)
    k, take = len(members), _at_least_one("num_classes_per_partition", num_classes_per_partition)
    if take > k:
        raise SettingError(
            f"{take} classes a client, but {k} classes occur in the data; lower num_classes_per_partition"
        )
    holdings = [_assign(client, k, take, class_assignment_mode, rng) for client in range(num_partitions)]
    parts: list[list[Integers]] = [[] for _ in range(num_partitions)]
    for label, index in enumerate(members):
        holders = [client for client, mine in enumerate(holdings) if label in mine]
        if len(holders) > len(index):
            raise SettingError(
                f"class {labels[index[0]]} goes to {len(holders)} clients but has {len(index)} examples; "
                "lower num_partitions or num_classes_per_partition, or assign classes deterministically"
            )
        if not holders:
            log.warning("class %d is at no client; its %d examples are left out", labels[index[0]], len(index))
        for client, piece in zip(holders, np.array_split(index, max(len(holders), 1)), strict=False):
            parts[client].append(piece)
    settings = {"num_classes_per_partition": take, "class_assignment_mode": class_assignment_mode, "seed": seed}
    return _wrap(data, labels, _shuffled([np.concatenate(part) for part in parts], rng), "classes", **settings)


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
    labels, rng = _labels(data, 1), _generator(seed)
    classes = _class_names(data, labels)
    asked = _matrix(counts)
    if num_partitions not in (None, len(asked)) or asked.shape[1] != len(classes):
        needed = f"({len(asked) if num_partitions is None else num_partitions}, {len(classes)})"
        raise SettingError(f"counts has shape {asked.shape}; needed: {needed}, a row a client and a column a class")
    there = np.bincount(labels, minlength=len(classes))
    short = np.flatnonzero(asked.sum(0) > there)
    if len(short):
        first = ", ".join(f"{classes[c]}: {asked[:, c].sum()} asked, {there[c]} there" for c in short[:3])
        raise DataError(f"counts ask for more than there is in {len(short)} classes ({first}); lower those columns")
    parts: list[list[Integers]] = [[np.empty(0, dtype=np.int64)] for _ in asked]
    for label in range(len(classes)):
        index = rng.permutation(np.flatnonzero(labels == label))
        for part, piece in zip(parts, np.split(index, asked[:, label].cumsum()), strict=False):
            part.append(piece)
    return _wrap(data, labels, _shuffled([np.concatenate(part) for part in parts], rng), "counts", seed=seed)


PARTITIONS: dict[str, Callable[..., Partition]] = {
    "iid": partition_iid,
    "dirichlet": partition_dirichlet,
    "client-dirichlet": partition_client_dirichlet,
    "shards": partition_shards,
    "classes": partition_classes,
    "counts": partition_from_counts,
}


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


def _labels(data: Labelled, num_partitions: int) -> Integers:
    """Return labels as (N,) int64, at least one a client."""
    _at_least_one("num_partitions", num_partitions)
    labels = (data.labels if isinstance(data, Data) else torch.as_tensor(data)).cpu().numpy()
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        given = f"{labels.dtype} {labels.shape}"
        raise DataError(f"labels to split are {given}; needed: (N,) whole numbers from 0, one an example")
    if num_partitions > len(labels):
        raise SettingError(
            f"{num_partitions} clients but {len(labels)} examples; needed: at most one client an example"
        )
    return labels.astype(np.int64)


def _by_class(labels: Integers) -> list[Integers]:
    """Return the indices of each class that occurs, by label."""
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _class_names(data: Labelled, labels: Integers) -> tuple[str, ...]:
    return data.spec.classes if isinstance(data, Data) else tuple(map(str, range(labels.max(initial=-1) + 1)))


def _concentration(
    alpha: float | Sequence[float], length: int, per: Literal["client", "class"]
) -> npt.NDArray[np.float64]:
    values = np.atleast_1d(np.asarray(alpha, dtype=np.float64))
    if len(values) not in (1, length) or not (np.isfinite(values).all() and (values > 0).all()):
        raise SettingError(f"alpha is {alpha}; needed: a finite number above 0, or {length} of them, one a {per}")
    return np.broadcast_to(values, length)


def _at_least_one(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise SettingError(f"{name} is {value!r}; needed: a whole number of at least 1")
    return int(value)


def _generator(seed: int) -> np.random.Generator:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise SettingError(f"seed is {seed!r}; needed: a whole number from 0")
    return np.random.default_rng(seed)


def _matrix(counts: Sequence[Sequence[int]] | Tensor) -> Integers:
    try:
        asked = np.asarray(counts.cpu() if isinstance(counts, Tensor) else counts)
    except ValueError:
        raise SettingError("counts has rows of unequal length; needed: a row a client, a column a class") from None
    if asked.ndim != 2 or asked.dtype.kind not in "iu" or (asked < 0).any():
        raise SettingError(f"counts is {asked.dtype} {asked.shape}; needed: whole numbers >= 0, a row a client")
    return asked.astype(np.int64)


def _shuffled(parts: list[Integers], rng: np.random.Generator) -> list[Integers]:
    """Shuffle each client's indices in place, in order of clients."""
    for part in parts:
        rng.shuffle(part)
    return parts


def _wrap(data: Labelled, labels: Integers, parts: list[Integers], by: str, **settings: Any) -> Partition:
    classes = _class_names(data, labels)
    counts = np.stack([np.bincount(labels[part], minlength=len(classes)) for part in parts])
    name = data.spec.name if isinstance(data, Data) else "labels"
    indices = tuple(torch.from_numpy(part) for part in parts)
    return Partition(indices, torch.from_numpy(counts), name, classes, by, settings)

"""The two Dirichlet splits: each class spread over clients, or each client's classes drawn.

They are different experiments at the same `alpha`: `partition_dirichlet` gives clients of unequal size, and
`partition_client_dirichlet` clients of equal size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedcondense.data.partition import Partition
from fedcondense.data.splitting import (
    Integers,
    Labelled,
    checked_generator,
    checked_labels,
    index_by_class,
    shuffle_each,
    to_partition,
)
from fedcondense.errors import SettingError

__all__ = ["partition_client_dirichlet", "partition_dirichlet"]

_TRIES = 1000  # flwr-datasets gives up after 11; where it succeeds, so do we, with the same indices


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
    unequal, and at a small `alpha` most clients lack most classes. Everything is drawn again until the smallest client
    has enough.

    Args:
        data: What is split, or its labels, (N,) of integers.
        num_partitions: How many clients there are.
        alpha: Concentration, above 0, or one per client; towards 0, each class goes to one client.
        seed: Equal seeds, equal splits.
        min_partition_size: Examples that each client gets at least; 0 allows clients without data.
        self_balancing: Give nothing more to a client that already holds more than the average.
    """
    labels, rng = checked_labels(data, num_partitions), checked_generator(seed)
    concentration = _concentration(alpha, num_partitions, "client")
    if min_partition_size * num_partitions > len(labels):
        needed = f"{num_partitions} clients of at least {min_partition_size}"
        raise SettingError(
            f"{needed} need more than {len(labels)} examples; lower min_partition_size or num_partitions (--clients)"
        )
    members = index_by_class(labels)
    for _ in range(_TRIES):
        held: list[list[Integers]] = [[] for _ in range(num_partitions)]
        sizes = np.zeros(num_partitions, dtype=np.int64)
        for index in members:
            shares = rng.dirichlet(concentration)
            if self_balancing:
                shares[sizes > len(labels) / num_partitions] = 0
                shares /= sum(shares.tolist())  # added one by one, as flwr-datasets does: the last bit moves a border
            borders = (shares.cumsum() * len(index)).astype(np.int64)[:-1]
            for part, piece in zip(held, np.split(index, borders), strict=True):
                part.append(piece)
            sizes = np.array([sum(map(len, part)) for part in held])
        if sizes.min() >= min_partition_size:
            break
    else:
        tried = f"{_TRIES} draws of Dir({alpha}) left a client of {num_partitions} with fewer than {min_partition_size}"
        raise SettingError(
            f"{tried} of {len(labels)} examples; raise alpha, or lower min_partition_size or num_partitions (--clients)"
        )
    settings = {
        "alpha": alpha,
        "seed": seed,
        "min_partition_size": min_partition_size,
        "self_balancing": self_balancing,
    }
    return to_partition(
        data, labels, shuffle_each([np.concatenate(part) for part in held], rng), "dirichlet", **settings
    )


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
    labels, rng = checked_labels(data, num_partitions), checked_generator(seed)
    members = index_by_class(labels)
    left = np.array([len(index) for index in members])
    shares = rng.dirichlet(_concentration(alpha, len(members), "class"), size=num_partitions)
    room = [len(labels) // num_partitions + (i < len(labels) % num_partitions) for i in range(num_partitions)]
    held = [np.empty(size, dtype=np.int64) for size in room]
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
        held[client][room[client]] = members[label][left[label]]
    return to_partition(data, labels, shuffle_each(held, rng), "client-dirichlet", alpha=alpha, seed=seed)


def _concentration(
    alpha: float | Sequence[float], length: int, per: Literal["client", "class"]
) -> npt.NDArray[np.float64]:
    values = np.atleast_1d(np.asarray(alpha, dtype=np.float64))
    if len(values) not in (1, length) or not (np.isfinite(values).all() and (values > 0).all()):
        raise SettingError(f"alpha is {alpha}; needed: a finite number above 0, or {length} of them, one a {per}")
    return np.broadcast_to(values, length)

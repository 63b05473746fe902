from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedcondense.data.dirichlet import partition_client_dirichlet, partition_dirichlet


def labels_of(*counts: int) -> Tensor:
    """Return mixed labels with the given number of each class."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


def test_a_dirichlet_with_large_alpha_is_proportional() -> None:
    """Dir(1e8) is flat to 1e-4: each of 4 clients gets a quarter of each class, up to one by rounding."""
    split = partition_dirichlet(labels_of(100, 60, 40), 4, alpha=1e8, seed=0)
    assert (split.counts - torch.tensor([25, 15, 10])).abs().max() <= 1


def test_the_shares_of_a_class_have_the_mean_and_spread_of_dirichlet() -> None:
    """A share of Dir(a 1_M) has mean 1/M and variance (M-1) / (M^2 (M a + 1)): 0.25 and 0.0625 at M 4, a 0.5."""
    labels = torch.zeros(400, dtype=torch.int64)
    shares = np.array(
        [
            partition_dirichlet(labels, 4, alpha=0.5, seed=s, min_partition_size=0).sizes.numpy() / 400
            for s in range(800)
        ]
    )
    assert np.abs(shares.mean(0) - 0.25).max() < 4 * (0.0625 / 800) ** 0.5
    assert abs(shares.var() - 0.0625) < 0.006


def test_every_client_has_the_minimum() -> None:
    for seed in range(20):
        assert (
            partition_dirichlet(labels_of(*[20] * 10), 8, alpha=0.1, seed=seed, min_partition_size=6).sizes.min() >= 6
        )


def test_self_balancing_gives_nothing_more_to_a_client_above_the_average() -> None:
    labels = labels_of(*[50] * 10)
    for seed in range(20):
        split = partition_dirichlet(labels, 5, alpha=0.1, seed=seed, min_partition_size=0, self_balancing=True)
        before = split.counts.cumsum(1) - split.counts
        given = torch.where(before > 100, split.counts, 0)
        assert not given[:-1].any()
        assert given[-1].max() <= 1  # the last client takes what rounding leaves, as in flwr-datasets


def test_clients_of_the_client_wise_rule_hold_few_classes_at_small_alpha_and_all_at_large() -> None:
    labels = labels_of(*[100] * 10)
    few = partition_client_dirichlet(labels, 5, alpha=0.05, seed=0).counts[0]
    all_of_them = partition_client_dirichlet(labels, 5, alpha=1e6, seed=0).counts
    assert few.max() >= 80  # of 200
    assert (all_of_them - 20).abs().max() < 5 * (200 * 0.1 * 0.9) ** 0.5

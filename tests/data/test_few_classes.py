from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedcondense.data.few_classes import partition_shards
from fedcondense.data.partitions import partition
from fedcondense.errors import SettingError


def labels_of(*counts: int) -> Tensor:
    """Return mixed labels with the given number of each class."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


def test_two_shards_of_one_class_each_are_two_classes_a_client() -> None:
    split = partition_shards(labels_of(*[20] * 10), 10, num_shards_per_partition=2)
    assert split.sizes.tolist() == [20] * 10
    assert ((split.counts == 0) | (split.counts == 10) | (split.counts == 20)).all()


def test_classes_in_turn_are_split_evenly() -> None:
    """Client i has classes i and i + 1 modulo 3: each class goes to two clients, half each."""
    split = partition(
        labels_of(10, 20, 30), 3, "classes", num_classes_per_partition=2, class_assignment_mode="deterministic"
    )
    assert split.counts.tolist() == [[5, 10, 0], [0, 10, 15], [5, 0, 15]]


def test_classes_that_nobody_draws_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    split = partition(labels_of(10, 10, 10), 1, "classes", num_classes_per_partition=2, seed=0)
    (missing,) = np.flatnonzero(split.counts.sum(0) == 0)
    assert f"class {missing} is at no client; its 10 examples are left out" in caplog.text


def test_a_class_with_fewer_examples_than_holders_is_refused() -> None:
    with pytest.raises(SettingError, match="class 1 goes to 3 clients but has 2 examples"):
        partition(labels_of(50, 2), 3, "classes", num_classes_per_partition=2)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedcondense.data.images import Data, Spec
from fedcondense.data.splitting import (
    at_least_one,
    checked_generator,
    checked_labels,
    class_names,
    index_by_class,
    shuffle_each,
    to_partition,
)
from fedcondense.errors import DataError, SettingError

LABELS = np.array([2, 0, 2, 5])


def test_the_labels_of_data_and_a_tensor_of_any_integer_type_are_the_same() -> None:
    labels = torch.tensor([1, 0, 1], dtype=torch.uint8)
    spec = Spec("toy", (1, 8, 8), ("a", "b"), (0.5,), (0.5,))
    data = Data(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), labels.long(), spec)
    assert checked_labels(labels, 2).tolist() == checked_labels(data, 2).tolist() == [1, 0, 1]
    assert checked_labels(labels, 2).dtype == np.int64


def test_more_clients_than_examples_and_labels_that_are_none_are_refused() -> None:
    with pytest.raises(SettingError, match="4 clients but 3 examples"):
        checked_labels(torch.tensor([0, 1, 0]), 4)
    with pytest.raises(DataError, match="labels to split are float32"):
        checked_labels(torch.tensor([0.0]), 1)


def test_only_classes_that_occur_are_indexed() -> None:
    assert [index.tolist() for index in index_by_class(LABELS)] == [[1], [0, 2], [3]]
    assert class_names(torch.from_numpy(LABELS), LABELS) == tuple("012345")


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2"])
def test_numbers_of_things_and_seeds_are_whole(value: Any) -> None:
    with pytest.raises(SettingError, match=r"shards is .*; needed: a whole number of at least 1"):
        at_least_one("shards", value)
    if value != 0:
        with pytest.raises(SettingError, match=r"seed is .*; needed: a whole number from 0"):
            checked_generator(value)


def test_numpy_s_integers_are_integers() -> None:
    assert at_least_one("shards", np.int32(3)) == 3  # type: ignore[arg-type]
    assert checked_generator(np.int64(3)).integers(100) == checked_generator(3).integers(100)  # type: ignore[arg-type]


def test_clients_are_shuffled_in_their_order_from_one_generator() -> None:
    parts = shuffle_each([np.arange(5), np.arange(5)], checked_generator(1))
    rng = np.random.default_rng(1)
    assert [part.tolist() for part in parts] == [rng.permutation(5).tolist() for _ in range(2)]


def test_a_partition_counts_the_classes_of_each_client_and_keeps_what_the_rule_was_given() -> None:
    split = to_partition(torch.from_numpy(LABELS), LABELS, [np.array([0, 3]), np.array([1])], "mine", seed=4)
    assert split.counts.tolist() == [[0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0]]
    assert (split.name, split.by, split.settings) == ("labels", "mine", {"seed": 4})

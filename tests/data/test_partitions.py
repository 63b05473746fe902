from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedcondense.data.images import Data, Spec
from fedcondense.data.partitions import (
    PARTITIONS,
    Partition,
    partition,
    partition_from_counts,
    partition_iid,
)
from fedcondense.errors import DataError, SettingError

# Printed by flwr-datasets 0.6.1 (numpy 2.4.6) for the labels of `flower_labels`: DirichletPartitioner,
# InnerDirichletPartitioner, ShardPartitioner and PathologicalPartitioner with the same arguments, three clients.
FROM_FLOWER: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"by": "dirichlet", "alpha": 0.3, "seed": 7, "min_partition_size": 5},
        [
            "53 2 28 39 47 7 5 23 9 17 52 43 37 24 8 32 22 38 0 10 13",
            "40 50 30 4 15 46 21 35 44 51 49 34 6 20 25 11 29 14 56 12 54 1 16 26 45 41 19 31 36",
            "48 55 58 3 18 33 57 27 42 59",
        ],
    ),
    (
        {"by": "dirichlet", "alpha": 0.3, "seed": 3, "min_partition_size": 15, "self_balancing": True},
        [
            "34 49 4 5 0 19 11 46 29 21 31 6 41 36 26 1 14 10 16 44 15",
            "51 37 2 23 38 9 28 24 8 32 7 17 39 22 56 13",
            "54 55 33 59 27 57 30 45 20 50 53 35 40 12 58 18 47 42 25 48 3 43 52",
        ],
    ),
    (
        {"by": "client-dirichlet", "alpha": 0.3, "seed": 7},
        [
            "54 59 32 26 17 24 43 37 15 47 58 11 53 52 16 38 40 39 49 55",
            "12 45 18 46 3 29 10 48 34 5 25 33 28 30 0 51 57 35 20 50",
            "14 31 4 41 56 36 13 2 6 22 23 9 27 42 8 1 19 21 44 7",
        ],
    ),
    (
        {"by": "shards", "seed": 7},
        [
            "41 43 49 39 36 31 26 32 51 46 54 53 37 58 34 52 44 47 29 38",
            "2 10 35 40 23 17 0 28 30 20 9 8 7 25 5 22 45 15 13 24",
            "16 4 12 3 33 6 55 56 14 19 48 18 42 59 11 27 21 57 50 1",
        ],
    ),
    (
        {"by": "classes", "seed": 7},
        [
            "52 53 38 8 37 58 28 7 23 47 32 3 2 9 24 22 17 18 39 13 43 54",
            "12 42 33 27 57",
            "59 6 36 31 51 21 1 11 49 56 26 4 19 29 44 14 48 34 46 41 16",
        ],
    ),
    (
        {"by": "classes", "class_assignment_mode": "first-deterministic", "seed": 7},
        [
            "28 50 17 20 2 45 32 8 23 15 22 58 7 43 38 0 53 47 40 35 5 9 30 13 37 24 39 25 55 54 10 52",
            "49 59 21 1 6 51 36 44 31 18 11 56 14 26 4 19 29 3 16 34 46 41",
            "12 42 33 27 57 48",
        ],
    ),
    (
        {"by": "classes", "class_assignment_mode": "deterministic", "seed": 7},
        [
            "15 50 6 40 16 14 19 1 4 5 11 30 0 35 20 26 25 29 21 10 45 55",
            "31 12 46 44 27 59 49 36 51 41 56 34",
            "42 57 3 33 18 48",
        ],
    ),
]


def flower_labels() -> Tensor:
    return torch.tensor([(i * i) % 5 if i % 3 else i % 5 for i in range(60)])


def labels_of(*counts: int) -> Tensor:
    """Return mixed labels with the given number of each class."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


def everything(split: Partition) -> list[int]:
    return sorted(int(i) for part in split for i in part)


@pytest.mark.parametrize(("how", "expected"), FROM_FLOWER, ids=lambda v: v.get("by") if isinstance(v, dict) else "")
def test_a_seed_gives_the_indices_of_flwr_datasets(how: dict[str, Any], expected: list[str]) -> None:
    split = partition(flower_labels(), 3, **how)
    assert [part.tolist() for part in split] == [[int(i) for i in row.split()] for row in expected]


@pytest.mark.parametrize("by", PARTITIONS)
class TestEveryRule:
    labels = labels_of(60, 40, 50, 30, 20)
    matrix = ((10, 0, 5, 0, 2), (3, 3, 3, 3, 3), (0, 20, 0, 1, 0), (40, 1, 0, 0, 9))

    def split(self, by: str, seed: int = 1) -> Partition:
        return partition(self.labels, 4, by, seed=seed, counts=self.matrix)

    def test_no_example_has_two_owners(self, by: str) -> None:
        held = everything(self.split(by))
        assert len(set(held)) == len(held)
        assert set(held) <= set(range(200))

    def test_the_count_matrix_says_what_the_indices_hold(self, by: str) -> None:
        split = self.split(by)
        for row, part in zip(split.counts, split, strict=True):
            assert torch.equal(row, torch.bincount(self.labels[part], minlength=5))
        assert split.sizes.tolist() == [len(part) for part in split]

    def test_equal_seeds_give_equal_splits_and_others_do_not(self, by: str) -> None:
        first, again, other = self.split(by), self.split(by), self.split(by, seed=2)
        assert [p.tolist() for p in first] == [p.tolist() for p in again]
        assert first.hash == again.hash
        assert [p.tolist() for p in first] != [p.tolist() for p in other]

    def test_the_settings_that_it_records_make_it_again(self, by: str) -> None:
        split = self.split(by)
        again = PARTITIONS[split.by](
            self.labels, len(split), **split.settings, **({"counts": self.matrix} if by == "counts" else {})
        )
        assert again.hash == split.hash

    def test_data_and_their_labels_are_split_alike(self, by: str) -> None:
        spec = Spec("toy", (1, 8, 8), tuple("abcde"), (0.5,), (0.5,))
        data = Data(torch.zeros(200, 1, 8, 8, dtype=torch.uint8), self.labels, spec)
        split = partition(data, 4, by, seed=1, counts=self.matrix)
        assert [p.tolist() for p in split] == [p.tolist() for p in self.split(by)]
        assert (split.name, split.classes) == ("toy", tuple("abcde"))


@pytest.mark.parametrize("by", [name for name in PARTITIONS if name != "counts"])
class TestEveryRuleThatTakesANumberOfClients:
    labels = labels_of(60, 40, 50, 30, 20)

    @pytest.mark.parametrize("number", [0, -3, 2.5])
    def test_no_clients_and_a_fraction_of_one_are_refused(self, by: str, number: Any) -> None:
        with pytest.raises(SettingError, match=r"num_partitions is .*; needed: a whole number of at least 1"):
            partition(self.labels, number, by)

    def test_more_clients_than_examples_are_refused(self, by: str) -> None:
        with pytest.raises(SettingError, match="201 clients but 200 examples"):
            partition(self.labels, 201, by, min_partition_size=0)


@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(lambda c: sum(c) >= 12),
    clients=st.integers(1, 12),
    alpha=st.sampled_from([0.01, 0.1, 1.0, 100.0]),
    seed=st.integers(0, 2**31),
    by=st.sampled_from(["iid", "dirichlet", "client-dirichlet"]),
)
def test_nothing_is_lost(counts: list[int], clients: int, alpha: float, seed: int, by: str) -> None:
    split = partition(labels_of(*counts), clients, by, alpha=alpha, seed=seed, min_partition_size=0)
    assert everything(split) == list(range(sum(counts)))
    if by != "dirichlet":
        assert split.sizes.max() - split.sizes.min() <= 1


def test_counts_are_met_exactly_and_a_row_of_zeros_is_a_client_without_data() -> None:
    matrix = torch.tensor([[3, 0, 1], [0, 0, 0], [7, 2, 0]])
    split = partition_from_counts(labels_of(10, 4, 1), counts=matrix)
    assert torch.equal(split.counts, matrix)
    assert len(split[1]) == 0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"by": "dirichlett"}, r"no partition is called 'dirichlett'; did you mean 'dirichlet'\?"),
        ({"alpha": 0.0}, r"alpha is 0.0; needed: a finite number above 0, or 4 of them, one a client"),
        ({"alpha": float("nan")}, r"alpha is nan"),
        *[({"by": by, "seed": -1, "counts": [[1, 1]] * 4}, r"seed is -1; needed: a whole number") for by in PARTITIONS],
        ({"alpha": [1.0, 2.0]}, r"alpha is \[1.0, 2.0\]; needed: .*4 of them"),
        ({"by": "client-dirichlet", "alpha": -1}, r"alpha is -1; needed: .* one a class"),
        ({"min_partition_size": 40}, r"4 clients of at least 40 need more than 100 examples; lower"),
        ({"alpha": 1e-4, "min_partition_size": 25}, r"1000 draws of Dir\(0.0001\) left a client of 4 .* raise alpha"),
        ({"by": "shards", "num_shards_per_partition": 30}, r"120 shards need as many examples, but there are 100"),
        ({"by": "shards", "num_shards_per_partition": 0}, r"num_shards_per_partition is 0; needed"),
        ({"by": "classes", "num_classes_per_partition": 3}, r"3 classes a client, but 2 classes occur"),
        ({"by": "classes", "class_assignment_mode": "rand"}, r"no class assignment mode is called 'rand'.*random"),
        ({"by": "counts"}, r"needs `counts`, a row a client"),
        ({"by": "counts", "counts": [[1, 2]]}, r"counts has shape \(1, 2\); needed: \(4, 2\)"),
        ({"by": "counts", "counts": [[1, 2], [3]]}, r"rows of unequal length"),
        ({"by": "counts", "counts": [[1, -2]] * 4}, r"needed: whole numbers >= 0"),
        ({"by": "counts", "counts": [[20, 1]] * 4}, r"more than there is in 1 classes \(0: 80 asked, 50 there\)"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(how: dict[str, Any], message: str) -> None:
    with pytest.raises((SettingError, DataError), match=message):
        partition(labels_of(50, 50), 4, **how)


@pytest.mark.parametrize("labels", [torch.tensor([0.5, 1.0]), torch.tensor([[0, 1]]), torch.tensor([-1, 0])])
def test_labels_that_are_none_are_refused(labels: Tensor) -> None:
    with pytest.raises(DataError, match="labels to split are"):
        partition(labels, 1, "iid")


def test_a_rule_added_to_the_dict_goes_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        PARTITIONS, "mine", lambda data, num_partitions, seed: partition_iid(data, num_partitions, seed=seed)
    )
    assert partition(labels_of(5, 5), 2, "mine", seed=3).hash == partition_iid(labels_of(5, 5), 2, seed=3).hash

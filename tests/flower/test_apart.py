from __future__ import annotations

import pytest
import torch

from fedcondense.data.images import Data
from fedcondense.flower.apart import HANDFUL, is_apart
from fedcondense.randomness import stream


@pytest.fixture(scope="module")
def few(train: Data) -> Data:
    return train.subset(train.per_class(20, stream(0)))


def test_it_is_the_share_of_each_class_rounded_down(few: Data) -> None:
    for share, count in ((0.0, 0), (0.1, 2), (0.3, 6), (0.04, 0), (0.99, 20 - HANDFUL)):
        apart = is_apart(few, share)
        assert apart.dtype == torch.bool
        assert torch.bincount(few.labels[apart], minlength=10).tolist() == [count] * 10, share


def test_what_must_be_left_to_learn_from_is_left(few: Data) -> None:
    assert int(is_apart(few, 0.5, least=18).sum()) == 10 * 2
    assert int(is_apart(few, 0.5, least=20).sum()) == 0


def test_it_follows_from_the_records_whatever_their_order(few: Data) -> None:
    order = torch.randperm(len(few), generator=stream(3))
    assert torch.equal(is_apart(few.subset(order), 0.2), is_apart(few, 0.2)[order])


def test_a_record_stays_on_its_side_when_others_come(train: Data) -> None:
    """Others move the edge of the share and nothing else; drawn anew, some 128 of the 400 would change sides."""
    more = train.subset(train.per_class(60, stream(0)))
    order = torch.cat([(more.labels == k).nonzero().flatten()[:40] for k in range(10)])
    before, after = is_apart(more.subset(order), 0.2), is_apart(more, 0.2)[order]
    assert int(before.sum()) == 80
    assert int((before != after).sum()) < 40


def test_equal_records_are_on_one_side(few: Data) -> None:
    twice = Data(torch.cat([few.images, few.images]), torch.cat([few.labels, few.labels]), few.spec)
    for share in (0.1, 0.125, 0.25, 0.3):
        first, second = is_apart(twice, share).chunk(2)
        assert torch.equal(first, second)
        assert int(first.sum()) > 0

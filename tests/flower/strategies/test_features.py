"""Features that all sites share, and labels that mean the same at all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedcondense.condensing import Own
from fedcondense.data.images import Data
from fedcondense.errors import SettingError
from fedcondense.flower.contract import Node
from fedcondense.flower.strategies.features import labelled_by, random_features

NETWORK = "convnet1-w16"


def test_a_records_features_do_not_depend_on_the_others(train: Data) -> None:
    index = torch.arange(600)
    together, alone = (
        random_features(train.subset(index), NETWORK, 3),
        random_features(train.subset(index[-1:]), NETWORK, 3),
    )
    torch.testing.assert_close(together[-1:], alone, rtol=1e-4, atol=1e-5)


def test_a_projection_keeps_distances_on_average(train: Data) -> None:
    data = train.subset(torch.arange(60))
    whole, small = random_features(data, NETWORK, 0), random_features(data, NETWORK, 0, 64)
    assert small.shape == (60, 64)
    ratio = torch.pdist(small).square().mean() / torch.pdist(whole).square().mean()
    assert float(ratio) == pytest.approx(1, abs=0.3)


def test_labels_index_the_classes_that_are_asked_for(train: Data) -> None:
    names = train.spec.classes
    few = train.subset(train.labels < 3)
    turned = labelled_by(Own(few), names[::-1], Node("here"))
    assert turned.spec.classes == names[::-1]
    assert torch.equal(9 - turned.labels, few.labels)
    assert torch.equal(turned.images, few.images)


def test_a_class_without_records_need_not_be_asked_for(train: Data) -> None:
    few = train.subset(train.labels < 3)
    assert torch.equal(labelled_by(Own(few), ("0", "1", "2"), Node("here")).labels, few.labels)


@pytest.mark.parametrize(
    ("classes", "said"),
    [((), "the question names no classes"), (("0", "1"), "site-a has classes that the question does not name: '2'")],
)
def test_what_cannot_be_matched_is_refused(classes: tuple[str, ...], said: str, train: Data) -> None:
    few = train.subset(train.labels < 3)
    with pytest.raises(SettingError, match=said):
        labelled_by(Own(few), classes, Node("site-a"))


def test_a_holder_that_shows_no_records_is_refused(train: Data) -> None:
    class Closed(Own):
        data = None  # type: ignore[assignment]

        def __init__(self, data: Data) -> None:
            self.inside = data

    with pytest.raises(SettingError, match="does not hand out"):
        labelled_by(Closed(train), train.spec.classes, Node("here"))


def test_the_spec_but_for_its_classes_stays(train: Data) -> None:
    turned = labelled_by(Own(train), train.spec.classes[::-1], Node("here"))
    assert replace(turned.spec, classes=train.spec.classes) == train.spec

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from flwr.app import ArrayRecord

from fedcondense.data.images import Data
from fedcondense.errors import UntrustedSetError
from fedcondense.flower.checked_grid import averageable
from fedcondense.flower.running import accuracy_of_scores, accuracy_of_weights, over_seen, scores_of
from fedcondense.flower.strategies import ServerSide
from fedcondense.networks import build
from fedcondense.training.fit import accuracy

NETWORK = "convnet1-w16-batch"


def side(test: Data) -> ServerSide:
    return ServerSide(None, lambda joined: torch.nn.Identity(), {}, spec=test.spec, network=NETWORK)


def test_scores_are_counted_class_by_class(test: Data) -> None:
    few = test.subset(torch.where(test.labels < 3)[0][:9])
    scores = torch.zeros(9, 10)
    scores[:, 1] = 1.0
    percent, per_class = accuracy_of_scores(scores, few)
    ones = int((few.labels == 1).sum())
    assert percent == pytest.approx(100 * ones / 9)
    assert per_class[:3].tolist() == [0.0, 100.0, 0.0]
    assert all(math.isnan(value) for value in per_class[3:].tolist())


def test_weights_that_were_averaged_are_measured_as_the_network_that_they_are(test: Data) -> None:
    model = build(NETWORK, test.spec.shape, 10, 3)
    wanted = accuracy(model, test)
    for arrays in (ArrayRecord(dict(model.state_dict())), averageable(model.state_dict())):
        percent, per_class = accuracy_of_weights(arrays, side(test), test)
        assert percent == wanted[0]
        assert torch.equal(per_class, wanted[1])


def test_weights_of_another_network_are_refused(test: Data) -> None:
    arrays = ArrayRecord(dict(build("convnet1-w16", test.spec.shape, 10, 0).state_dict()))
    with pytest.raises(UntrustedSetError, match="other names than those of this network"):
        accuracy_of_weights(arrays, side(test), test)


def test_a_strategy_without_a_classifier_of_its_own_gives_no_scores(test: Data) -> None:
    assert scores_of(object(), test) is None


def test_of_a_stream_the_classes_so_far_are_measured_by_their_records(test: Data) -> None:
    per_class = torch.arange(10.0)
    counts = test.counts[:3].tolist()
    found = over_seen(SimpleNamespace(seen=("0", "1", "2")), per_class, test)  # type: ignore[arg-type]
    assert found == {"seen": pytest.approx((counts[1] + 2 * counts[2]) / sum(counts), abs=1e-3)}
    assert over_seen(object(), per_class, test) == {}  # type: ignore[arg-type]

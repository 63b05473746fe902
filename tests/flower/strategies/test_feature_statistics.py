from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import Context

from fedcondense.condensing import Own
from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.errors import UntrustedSetError
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.contract import Answer, Node, Site, State
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.payloads import Sums
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.running import accuracy_of_scores
from fedcondense.flower.strategies.feature_statistics import FeatureStatistics, Moments
from fedcondense.flower.strategies.features import random_features

NETWORK = "convnet2-w32"
NODE = Node("client-0", Caps.none())


def test_gaussians_of_features_classify(train: Data, test: Data, held: Partition) -> None:
    def load(context: Context) -> Data:
        return train.subset(held[int(context.node_config["partition-id"])])

    strategy = FeatureStatistics(limits=ReplyLimits.none(train.spec))
    with task_identity():
        grid = InProcessGrid(make_client_app(load, caps=Caps.none(), is_counted=False), 3)
        strategy.start(grid)
    assert accuracy_of_scores(strategy.classify(test), test)[0] > 80
    per_class = 2 * 2 * 128 + 16  # means and variances in half precision, a label and a count
    assert sum(traffic.up for traffic in grid.traffic.values()) / 3 < 10 * per_class + 3000


def test_moments_are_those_of_a_loop_over_classes(train: Data) -> None:
    some = train.subset(torch.where(train.labels % 3 == 0)[0][:200])
    sent = Moments(some.spec.classes, NETWORK, 2).prepare(Own(some), NODE).run().tensors
    features = random_features(some, NETWORK, 2)
    assert sent["labels"].tolist() == [0, 3, 6, 9]
    for i, label in enumerate(sent["labels"].tolist()):
        mine = features[some.labels == label]
        assert int(sent["counts"][i]) == len(mine)
        torch.testing.assert_close(sent["means"][i].float(), mine.mean(0), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(sent["variances"][i].float(), mine.var(0, correction=0), rtol=1e-2, atol=1e-3)


def test_the_cost_is_that_of_the_moments(train: Data) -> None:
    job = Moments(train.spec.classes, NETWORK).prepare(Own(train), NODE)
    assert job.cost.nbytes == sum(value.nbytes for value in job.run().tensors.values())


def test_they_are_of_full_precision_under_a_callers_autocast(train: Data) -> None:
    task = Moments(train.spec.classes, NETWORK)
    plain = task.prepare(Own(train), NODE).run().tensors
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        mixed = task.prepare(Own(train), NODE).run().tensors
    for name, value in plain.items():
        torch.testing.assert_close(mixed[name], value, rtol=0, atol=0)


class TestHostileMoments:
    def combined(self, train: Data, limits: Any = None, **changes: torch.Tensor) -> State:
        task = Moments(train.spec.classes, NETWORK)
        sound = task.prepare(Own(train), NODE).run()
        strategy = FeatureStatistics(task, limits=limits or ReplyLimits.of(train.spec))
        answer = Answer(Site("client-0", "0", 0), Sums({**sound.tensors, **changes}))
        strategy.examine("answer", answer)
        return strategy.combine(1, "answer", State(), [answer])

    def test_sound_ones_give_a_classifier(self, train: Data) -> None:
        assert self.combined(train).tensors["classifier"].shape == (129, 10)

    @pytest.mark.parametrize(
        "changes",
        [
            {"labels": torch.arange(10) + 1},
            {"labels": torch.arange(10) - 1},
            {"labels": torch.arange(9)},
            {"labels": torch.zeros(10, dtype=torch.int64)},
            {"labels": torch.tensor(3)},
            {"counts": torch.full((10,), -5)},
            {"counts": torch.full((10,), 2**60)},
            {"counts": torch.zeros(10, dtype=torch.int64)},
            {"counts": torch.ones(10)},
            {"means": torch.zeros(10, 7)},
            {"means": torch.zeros(9, 128)},
            {"variances": torch.full((10, 128), -1.0).half()},
            {"means": torch.zeros(10, 128)},
            {"variances": torch.zeros(10)},
            {"labels": torch.zeros(10, 2, dtype=torch.int64)},
        ],
    )
    def test_others_are_refused_before_anything_is_made_of_them(
        self, changes: dict[str, torch.Tensor], train: Data
    ) -> None:
        with pytest.raises(UntrustedSetError):
            self.combined(train, **changes)

    def test_a_server_that_does_not_know_the_images_takes_what_agrees_with_itself(self, train: Data) -> None:
        other = torch.zeros(10, 7, dtype=torch.float16)
        assert self.combined(train, ReplyLimits(), means=other, variances=other).tensors["classifier"].shape == (8, 10)
        with pytest.raises(UntrustedSetError, match="variances"):
            self.combined(train, ReplyLimits(), means=other)

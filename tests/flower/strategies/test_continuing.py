from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedcondense.contract import Batch
from fedcondense.data.images import Data
from fedcondense.errors import SettingError
from fedcondense.flower.strategies.continuing import LOSSES, LocalSteps, Seen, train_beside
from fedcondense.networks import build
from fedcondense.randomness import stream

SEEN = Seen(torch.tensor([4, 0, 81]), torch.tensor([0.2, 0.1, 0.7]))


def trained(data: Data, anchors: Batch | None = None, **how: Any) -> dict[str, Tensor]:
    network = build("convnet1-w16", data.spec.shape, 10, 0)
    train_beside(network, data, anchors, replace(LocalSteps(), **{"loss": "softmax", **how}), stream(0, "test"))
    return {name: value.clone() for name, value in network.state_dict().items()}


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in one)


class TestLosses:
    def test_restricted_shrinks_the_logits_of_missing_classes(self) -> None:
        logits = torch.tensor([[1.0, 2.0, 3.0]])
        assert LOSSES["restricted"].of(logits, SEEN, 0.5).tolist() == [[1.0, 1.0, 3.0]]
        assert LOSSES["restricted"].of(logits, SEEN, 1.0).tolist() == logits.tolist()

    def test_calibrated_lowers_by_the_fourth_root_of_the_count(self) -> None:
        """Of 4 records 4 ** -0.25, of 81 a third; a class without records leaves the softmax."""
        found = LOSSES["calibrated"].of(torch.zeros(1, 3), SEEN, 1.0)
        assert found[0, 0] == pytest.approx(-(4**-0.25))
        assert found[0, 2] == pytest.approx(-1 / 3)
        assert F.softmax(found, 1)[0, 1] == 0

    def test_balanced_gives_a_network_that_knows_nothing_what_a_step_sees(self) -> None:
        """Equal logits become the prior itself, so that its logarithm is nothing that is left to be learned."""
        found = LOSSES["balanced"].of(torch.zeros(2, 3), SEEN, 1.0)
        torch.testing.assert_close(F.softmax(found, 1), SEEN.prior.expand(2, 3))
        assert LOSSES["balanced"].anchors_too

    def test_softmax_is_the_plain_one(self) -> None:
        logits = torch.randn(2, 3)
        assert LOSSES["softmax"].of(logits, SEEN, 0.3) is logits


@pytest.fixture(scope="module")
def skewed(train: Data) -> Data:
    return train.subset(train.labels < 4)


class TestTrainBeside:
    def test_the_step_size_falls_to_its_end_at_the_last_step(self, skewed: Data) -> None:
        """Of two steps that fall to nothing the second moves no weight; where it stays, it does."""
        whole: dict[str, Any] = {"batch": len(skewed), "momentum": 0.0}
        once = trained(skewed, **whole)
        assert not differ(once, trained(skewed, **whole, epochs=2, lr_end=0.0))
        assert differ(once, trained(skewed, **whole, epochs=2, lr_end=0.5))

    def test_missing_classes_are_unlearned_less_with_each_cure(self, skewed: Data, train: Data) -> None:
        """The bias of a class that the site lacks falls by the softmax of its records, and by nothing else."""
        others = train.subset(train.labels >= 4)
        anchors = others.batch(torch.arange(64)).images
        beside = Batch(anchors, F.one_hot(others.labels[:64], 10).float())
        untrained = build("convnet1-w16", train.spec.shape, 10, 0).state_dict()
        (bias,) = [name for name in untrained if untrained[name].shape == (10,)]
        plain, masked = trained(skewed), trained(skewed, loss="calibrated", strength=0.0)
        restricted, anchored = trained(skewed, loss="restricted", strength=0.1), trained(skewed, beside)
        fell = {
            name: float((untrained[bias] - found[bias])[4:].mean())
            for name, found in (
                ("plain", plain),
                ("restricted", restricted),
                ("masked", masked),
                ("anchored", anchored),
            )
        }
        assert fell["plain"] > fell["restricted"] > 0
        assert fell["plain"] > fell["anchored"]
        assert abs(fell["masked"]) < 0.1 * fell["plain"]  # weight decay alone

    def test_a_proximal_term_holds_the_weights_back(self, skewed: Data) -> None:
        start = build("convnet1-w16", skewed.spec.shape, 10, 0).state_dict()

        def moved(found: dict[str, Tensor]) -> float:
            return sum(float((found[name] - start[name]).square().sum()) for name in start)

        assert moved(trained(skewed, proximal_mu=10.0)) < 0.5 * moved(trained(skewed))

    def test_the_same_draws_give_the_same_weights(self, skewed: Data) -> None:
        assert not differ(trained(skewed), trained(skewed))
        assert differ(trained(skewed), trained(skewed, lr=0.01))

    def test_without_anchors_their_settings_change_nothing(self, skewed: Data) -> None:
        assert not differ(trained(skewed), trained(skewed, anchor_batch=7, anchor_weight=0.9))

    def test_what_diverges_is_refused_with_a_step_size(self, skewed: Data) -> None:
        with pytest.raises(SettingError, match=r"diverged at lr 1e\+20; try a third of it"):
            trained(skewed, lr=1e20)
        with pytest.raises(SettingError, match="no loss is called 'soft'"):
            trained(skewed, loss="soft")

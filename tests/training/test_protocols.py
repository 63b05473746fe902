"""Protocols of evaluation, and the published one followed step by step at a tiny size."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

import fedcondense as fc
from fedcondense.errors import SettingError
from fedcondense.networks import ConvNet
from fedcondense.training import PROTOCOLS, Fit, Protocol


@pytest.fixture(scope="module")
def tiny() -> tuple[fc.SyntheticSet, fc.Data]:
    """Return a real image of each of two digits, and a few test images."""
    train, test = (part.subset((part.labels < 2).nonzero().flatten()) for part in fc.load_data("digits"))
    return fc.select(train, ipc=1, method="random"), test


def test_the_published_one_is_what_the_papers_say() -> None:
    published = PROTOCOLS["published"]
    settings = {"steps": 0, "epochs": 1000, "batch": 256, "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
    others = {"nesterov": False, "schedule": "step", "augment": True, "cutmix": 0.0}
    assert asdict(published.recipe) == settings | others
    names = {side: published.network((3, side, side)) for side in (28, 32, 64, 128)}
    assert names == {28: "convnet3-w128", 32: "convnet3-w128", 64: "convnet4-w128", 128: "convnet5-w128"}
    assert PROTOCOLS["short"].network((3, 128, 128)) == "convnet4-w32"
    network = ConvNet((3, 32, 32), 10)  # the paper's: 320,010 weights
    assert sum(p.numel() for p in network.parameters()) == 320_010


def test_an_evaluation_under_it_takes_its_steps_and_says_so(
    tiny: tuple[fc.SyntheticSet, fc.Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def counted(self: torch.optim.SGD, *given: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *given)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    measured = fc.evaluate(*tiny, protocol="published", network="convnet1-w16", seeds=[0])
    assert rates == pytest.approx([0.01] * 500 + [0.001] * 500)  # two images: a step an epoch
    assert measured.protocol == measured.to_dict()["protocol"] == "published"
    kept = tiny[0].with_evaluation(measured.to_dict()).evaluation
    assert kept is not None
    assert Fit(**kept["recipe"]) == PROTOCOLS["published"].recipe  # what `evaluate_as_recorded` takes


def test_a_recipe_departs_from_the_protocol_and_is_no_longer_called_so(tiny: tuple[fc.SyntheticSet, fc.Data]) -> None:
    assert fc.evaluate(*tiny, recipe=Fit(steps=2), seeds=[0]).protocol == "own"
    own = Protocol(Fit(epochs=3, batch=1), width=16)
    measured = fc.evaluate(*tiny, protocol=own, seeds=[0])
    assert (measured.network, measured.recipe.steps_on(2)) == ("convnet2-w16", 6)


def test_an_unknown_name_is_refused_with_the_names(tiny: tuple[fc.SyntheticSet, fc.Data]) -> None:
    with pytest.raises(SettingError, match="no protocol is called 'publised'; did you mean 'published'"):
        fc.evaluate(*tiny, protocol="publised")

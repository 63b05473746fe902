from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from fedcondense import STARTS, Fit, condense, evaluate, load_data
from fedcondense.arguments import called, device_of
from fedcondense.contract import Recipe
from fedcondense.data import Data
from fedcondense.errors import SettingError
from fedcondense.objectives.gradient import GradientMatching
from fedcondense.parametrizations import Pixels
from fedcondense.sources import Pool


@pytest.mark.parametrize(
    "device", ["cuda:77", "gpu", "", "mps:3", "meta", "cpu:1", True, 1.0, None, ["cpu"], torch.device("meta"), "xla"]
)
def test_a_device_that_is_not_here_is_refused_in_one_line(device: Any) -> None:
    with pytest.raises(SettingError, match=r"device .* cannot be used .*; on this machine: cpu") as error:
        device_of(device)
    assert "\n" not in str(error.value)


def test_functions_are_called_alike_in_every_process() -> None:
    class Mine:
        def __call__(self) -> Iterator[int]:
            yield 1

    assert called(partial(partial(max, key=len), 1)) == "max(1, key=len)"
    assert called(Mine()) == called(Mine) == "Mine"
    assert called(torch.nn.Linear(2, 2)) == "Linear"
    assert called(lambda: 0) == "<lambda>"


def few() -> Data:
    data = load_data("digits").train
    return data.subset(torch.arange(60))


class Noise:
    def __call__(self, data: Data, counts: list[int], generator: torch.Generator) -> torch.Tensor:
        return STARTS["noise"](data, counts, generator)


@pytest.mark.parametrize(("start", "name"), [(partial(STARTS["noise"]), "noise"), (Noise(), "Noise")])
def test_a_start_is_anything_that_can_be_called(start: Any, name: str) -> None:
    numbers: dict[str, Any] = {"ipc": np.int64(1), "steps": np.int64(0)}
    made = condense(few(), objective="dm", network="convnet1-w16", start=start, **numbers)
    assert made.record.start == name
    usual = condense(few(), 1, "dm", network="convnet1-w16", steps=0, start="noise")
    assert torch.equal(made.pixels().images, usual.pixels().images)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"objective": GradientMatching}, "objective: the class GradientMatching itself; needed: one of dm, "),
        ({"objective": None}, "objective: a NoneType; needed: one of dm"),
        ({"parametrization": Pixels}, "parametrization: the class Pixels itself; needed: one of pixels"),
        ({"parametrization": 4}, "parametrization: a int; needed"),
        ({"recipe": Fit()}, "recipe: a Fit; needed: a Recipe of condensing"),
        ({"recipe": Recipe}, "recipe: the class Recipe itself"),
        ({"source": Pool}, "source: the class Pool itself; needed: a NetworkSource, built"),
        ({"start": 3}, "start 3; needed: one of gaussian"),
        ({"steps": True}, "steps True; needed: a whole number"),
        ({"ipc": 1.0}, r"ipc 1\.0; needed: a whole number from 1, below"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"network": " convnet1-w16"}, "no network is called ' convnet1-w16'; did you mean"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_one_line(given: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told) as error:
        condense(few(), **{"ipc": 1, "objective": "dm", "network": "convnet1-w16", "steps": 1, **given})
    assert "\n" not in str(error.value)


def test_evaluation_takes_seeds_and_refuses_another_recipe() -> None:
    made = condense(few(), 1, "dm", network="convnet1-w16", steps=0)
    steps: Any = np.int64(1)
    options: dict[str, Any] = {"network": "convnet1-w16", "recipe": Fit(steps=steps)}
    assert evaluate(made, few(), seeds=np.arange(2), **options).to_dict()["seeds"] == [0, 1]
    with pytest.raises(SettingError, match="recipe: a Recipe; needed: a Fit"):
        evaluate(made, few(), network="convnet1-w16", recipe=GradientMatching.recipe)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="device 'cuda:77' cannot be used"):
        evaluate(made, few(), device="cuda:77", **options)

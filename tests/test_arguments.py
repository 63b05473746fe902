from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcondense import STARTS, Fit, condense, evaluate, load_data
from fedcondense.arguments import called, device_of, seeds_of, whole
from fedcondense.contract import Recipe
from fedcondense.data import Data
from fedcondense.errors import SettingError
from fedcondense.objectives.gradient import GradientMatching
from fedcondense.parametrizations import Pixels
from fedcondense.sources import Pool

INTEGERS: tuple[Callable[[int], Any], ...] = (int, np.int64, np.uint8, np.int16, torch.tensor, np.array)


@given(st.integers(0, 127), st.sampled_from(INTEGERS))
@settings(deadline=None, derandomize=True)
def test_a_whole_number_of_any_library_is_an_int(number: int, kind: Callable[[int], Any]) -> None:
    found = whole("steps", kind(number))
    assert found == number
    assert type(found) is int
    assert seeds_of(iter([kind(number)])) == (number,)


@given(
    st.one_of(
        st.booleans(),
        st.floats(),
        st.text(),
        st.none(),
        st.lists(st.integers()),
        st.integers(max_value=-1),
        st.builds(np.bool_, st.booleans()),
        st.builds(torch.tensor, st.floats(width=32)),
        st.builds(np.float32, st.floats(width=32)),
    )
)
@settings(deadline=None, derandomize=True)
def test_all_else_is_no_whole_number(value: Any) -> None:
    with pytest.raises(SettingError, match="needed: a whole number, 0 or more"):
        whole("steps", value)


@pytest.mark.parametrize(
    "seeds", [[0, 1], (0, 1), range(2), np.arange(2), torch.arange(2), {0: "a", 1: "b"}.keys(), (k for k in range(2))]
)
def test_seeds_in_a_row_of_any_kind(seeds: Any) -> None:
    assert seeds_of(seeds) == (0, 1)


@pytest.mark.parametrize("seeds", [3, "01", b"01", {0, 1}, {0: 1}, None, [], np.eye(2, dtype=int), [0.5], [True], [-1]])
def test_what_is_no_row_of_seeds_is_refused(seeds: Any) -> None:
    with pytest.raises(SettingError, match="seed"):
        seeds_of(seeds)


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
    none: Any = np.int64(0)
    made = condense(few(), none + 1, "dm", network="convnet1-w16", steps=none, start=start)
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
        ({"ipc": 1.0}, r"ipc 1\.0; needed: a whole number, 1 or more"),
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
    one: Any = np.int64(1)
    options: dict[str, Any] = {"network": "convnet1-w16", "recipe": Fit(steps=one)}
    assert evaluate(made, few(), seeds=np.arange(2), **options).to_dict()["seeds"] == [0, 1]
    with pytest.raises(SettingError, match="recipe: a Recipe; needed: a Fit"):
        evaluate(made, few(), network="convnet1-w16", recipe=GradientMatching.recipe)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="device 'cuda:77' cannot be used"):
        evaluate(made, few(), device="cuda:77", **options)

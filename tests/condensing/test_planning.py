from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from fedcondense.condensing.loop import Loop, condense, prepare
from fedcondense.condensing.planning import Plan, plan, shorten
from fedcondense.data.images import Data, Spec
from fedcondense.errors import DataError, SettingError
from fedcondense.networks import ConvNet
from fedcondense.objectives import OBJECTIVES
from fedcondense.sources.networks import Fresh, Pool
from fedcondense.sources.trajectories import Trajectories

TINY = partial(ConvNet, width=4, depth=2)


def toy(counts: tuple[int, ...] = (90, 80), shape: tuple[int, int, int] = (1, 8, 8)) -> Data:
    spec = Spec("toy", shape, ("a", "b", "c")[: len(counts)], (0.5,) * shape[0], (0.25,) * shape[0])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (sum(counts), *shape), generator=generator, dtype=torch.uint8)
    return Data(images, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), spec)


@pytest.mark.parametrize("parametrization", ["pixels", "multi-formation"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bytes_images_and_steps_are_those_of_the_run(objective: str, parametrization: str) -> None:
    """But for the digits of the seconds and steps in the record."""
    expected = plan(toy(), 2, objective, parametrization, network=TINY, steps=3)
    made = condense(toy(), 2, objective, parametrization, network=TINY, steps=3)
    assert abs(expected.nbytes - made.nbytes) <= 16
    assert expected.decoded == len(made)
    assert expected.steps == made.record.steps == 3
    assert expected.network == made.record.network


def test_a_class_smaller_than_ipc_and_a_limit_are_planned_as_they_will_be() -> None:
    assert plan(toy((9, 3)), 5, "dm", network=TINY, steps=1).decoded == 8
    assert plan(toy((9, 3)), 5, "dm", network=TINY, steps=1, limit=0.5).decoded == 5


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (800, 96 * 2.0 + 704 * 0.5),  # each of 96 draws is paid once
        (50, 50 * 2.0),  # fewer steps than draws: every one is new
    ],
)
def test_seconds_count_a_pool_s_draws_once(steps: int, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which a step with a new draw takes 2 s and one with a known draw 0.5 s."""
    now = 0.0
    step = Loop.step

    def timed(self: Loop) -> torch.Tensor:
        nonlocal now
        known = len(self.observations)
        loss = step(self)
        now += 2.0 if len(self.observations) > known else 0.5
        return loss

    monkeypatch.setattr(Loop, "step", timed)
    monkeypatch.setattr("fedcondense.condensing.planning.time.monotonic", lambda: now)
    assert plan(toy(), 1, "dm-ridge", network=TINY, steps=steps).seconds == pytest.approx(expected)


def test_without_a_pool_every_step_costs_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    step = Loop.step

    def timed(self: Loop) -> torch.Tensor:
        nonlocal now
        now += 3.0
        return step(self)

    monkeypatch.setattr(Loop, "step", timed)
    monkeypatch.setattr("fedcondense.condensing.planning.time.monotonic", lambda: now)
    recipe = replace(OBJECTIVES["dm"].recipe, source=Fresh)
    assert plan(toy(), 1, "dm", network=TINY, recipe=recipe, steps=10).seconds == pytest.approx(30)


def test_experts_are_paid_once_and_steps_train_none() -> None:
    """A clock that every look moves by a second: one expert takes one, the four of them four."""
    ticks = itertools.count()
    data = toy()
    loop = prepare(data, 1, "mtt", "pixels", network=TINY, steps=1)
    assert isinstance(loop.source, Trajectories)
    loop.source.experts = 4
    assert shorten(loop, data, lambda: float(next(ticks))) == (0, 4.0)
    assert loop.source.experts == 1


def test_memory_grows_with_images_and_with_the_pool() -> None:
    """A pool's rows by hand: entries x 64 rows a class x features x 2 bytes."""
    few, many = (plan(toy(), ipc, "dm", network=TINY, steps=1).memory for ipc in (1, 8))
    assert many > few
    sizes = []
    for size in (10, 20):
        recipe = replace(OBJECTIVES["dm"].recipe, source=partial(Pool, size=size))
        sizes.append(plan(toy(), 1, "dm", network=TINY, recipe=recipe, steps=1).memory)
    assert sizes[1] - sizes[0] == 10 * (64 * 2) * (4 * 2 * 2) * 2


class TestAdvice:
    def advice(self, data: Data, ipc: int, parametrization: str = "pixels") -> str:
        return " | ".join(plan(data, ipc, "dm", parametrization, network=TINY, steps=1).advice)

    def test_nothing_simpler_no_advice(self) -> None:
        assert self.advice(toy(), 2) == ""

    def test_a_set_of_more_than_a_quarter_of_the_records(self) -> None:
        assert "30 images stand for 100 records: sending a selection of them costs no seconds" in self.advice(
            toy((50, 50)), 15
        )

    def test_fifty_images_a_class(self) -> None:
        assert "from about 50 images per class on, k-means or random real images come close" in self.advice(toy(), 50)
        assert "50 images" not in self.advice(toy(), 20)

    def test_colour_photographs_and_multi_formation(self) -> None:
        colour = toy((30, 30), (3, 32, 32))
        assert "multi-formation" in self.advice(colour, 1)
        assert "multi-formation" not in self.advice(colour, 1, "multi-formation")
        assert "multi-formation" not in self.advice(toy((30, 30), (1, 32, 32)), 1)


def test_a_plan_is_plain_values() -> None:
    given = Plan(1, 2, 3, 4.567, 5, "net", ("first", "second")).to_dict()
    assert json.loads(json.dumps(given)) == {
        "nbytes": 1,
        "decoded": 2,
        "steps": 3,
        "seconds": 4.6,
        "memory": 5,
        "network": "net",
        "advice": ["first", "second"],
    }


@pytest.mark.parametrize(
    ("data", "settings", "error"),
    [
        (toy(), {"ipc": 0}, SettingError),
        (toy(), {"objective": "nothing"}, SettingError),
        (toy().subset(torch.tensor([], dtype=torch.int64)), {}, DataError),
    ],
)
def test_what_condense_refuses_is_refused_here(data: Data, settings: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        plan(data, **({"network": TINY} | settings))


def test_planning_leaves_the_global_state_alone() -> None:
    before = torch.random.get_rng_state()
    plan(toy(), 1, network=TINY, steps=2)
    assert torch.equal(torch.random.get_rng_state(), before)

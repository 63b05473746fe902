from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from fedcondense.condensing import Plan, condense, estimate, plan, prepare, run
from fedcondense.condensing.loop import Loop
from fedcondense.condensing.planning import make_trial
from fedcondense.contract import Draw
from fedcondense.data.images import Data, Spec
from fedcondense.errors import DataError, SettingError
from fedcondense.networks import ConvNet
from fedcondense.objectives import OBJECTIVES, with_learned_labels
from fedcondense.objectives.mmd_ridge import KernelMeansAndRidge
from fedcondense.sets.forecast import widest_evaluation
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sources import Fresh, Pool
from fedcondense.sources.trajectories import Trajectories
from fedcondense.training.fit import fit

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
    assert make_trial(loop, lambda: float(next(ticks))) == (0, 4.0)
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
        assert "30 images for 100 records: a selection takes no seconds, if records may be shown" in self.advice(
            toy((50, 50)), 15
        )

    def test_fifty_images_a_class(self) -> None:
        assert "from about 50 images per class on, real images come close" in self.advice(toy(), 50)
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
        "most": None,
        "codec": "raw",
        "ipc": 0,
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


def state_of(loop: Loop) -> dict[str, Any]:
    """Return all that a step may change, but for the clock."""
    state = loop.state_dict() | {"optimizer": loop.optimizer.state_dict(), "seconds": 0.0}
    kept = {name: value for name, value in vars(loop.source).items() if name in ("size", "experts", "seed")}
    grads = {name: code.grad for name, code in loop.codes.items()}
    return copy.deepcopy({"state": state, "kept": kept, "grads": grads, "began": loop.began})


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def bytes_of(synthetic: SyntheticSet) -> bytes:
    return synthetic.with_record(seconds=0.0).to_bytes()


class TestEstimate:
    @pytest.mark.parametrize("taken", [0, 3])
    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_a_loop_is_as_it_was_and_makes_the_same_set(self, objective: str, taken: int) -> None:
        settings: dict[str, Any] = {"network": TINY, "steps": 7}
        whole = condense(toy(), 2, objective, **settings)
        loop = prepare(toy(), 2, objective, "pixels", **settings)
        for _ in range(taken):
            loop.step()
        loop.optimizer.zero_grad(set_to_none=True)
        before = state_of(loop)
        estimate(loop)
        assert equal(state_of(loop), before)
        assert bytes_of(run(loop)) == bytes_of(whole)

    def test_learned_labels_and_prefixes_too(self) -> None:
        for objective in (with_learned_labels(OBJECTIVES["frepo"]), OBJECTIVES["mmd-ridge"]):
            settings: dict[str, Any] = {"network": TINY, "steps": 7, "prefixes": not objective.learn_labels}
            loop = prepare(toy(), 2, objective, "pixels", **settings)
            estimate(loop)
            assert bytes_of(run(loop)) == bytes_of(condense(toy(), 2, objective, **settings))

    def test_what_was_observed_for_a_pool_is_handed_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of three entries, a trial meets two and the run the third."""
        observed = list[Any]()
        observe = KernelMeansAndRidge.observe

        def noted(self: KernelMeansAndRidge, draw: Draw, data: Data) -> Any:
            observed.append(draw.key)
            return observe(self, draw, data)

        monkeypatch.setattr(KernelMeansAndRidge, "observe", noted)
        recipe = replace(OBJECTIVES["mmd-ridge"].recipe, source=partial(Pool, size=3))
        loop = prepare(toy(), 1, "mmd-ridge", "pixels", network=TINY, steps=6, recipe=recipe)
        estimate(loop)
        assert len(observed) == 2
        run(loop)
        assert len(observed) == len(set(observed)) == 3

    def test_the_expert_of_a_trial_is_handed_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        trained = list[int]()

        def noted(*given: Any, **more: Any) -> None:
            trained.append(more["seed"])
            fit(*given, **more)

        monkeypatch.setattr("fedcondense.sources.trajectories.fit", noted)
        loop = prepare(toy(), 1, "mtt", "pixels", network=TINY, steps=20)
        estimate(loop)
        assert trained
        run(loop)
        assert len(trained) == len(set(trained))

    def test_a_plan_is_prepare_then_estimate(self) -> None:
        given: dict[str, Any] = {"network": TINY, "steps": 5}
        apart = estimate(prepare(toy(), 2, "dm", "multi-formation", **given))
        assert replace(plan(toy(), 2, "dm", "multi-formation", **given), seconds=0) == replace(apart, seconds=0)

    @pytest.mark.parametrize("objective", ["mtt", "mmd-ridge"])
    def test_a_trial_that_takes_too_long_is_refused_and_leaves_no_trace(
        self, objective: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A clock that every look moves by a second; `mtt` would look often while it trains an expert."""
        loop = prepare(toy(), 1, objective, "pixels", network=TINY, steps=5)
        before, ticks = state_of(loop), itertools.count()
        with monkeypatch.context() as patch:
            patch.setattr("time.monotonic", lambda: float(next(ticks)))
            with pytest.raises(SettingError, match=r"the time was up after .* s, in the four steps of a trial"):
                estimate(loop, until=6.0)
            assert next(ticks) < 20
        after, before["began"] = state_of(loop), loop.began
        assert equal(after, before)
        assert bytes_of(run(loop)) == bytes_of(condense(toy(), 1, objective, network=TINY, steps=5))


def test_planning_leaves_the_global_state_alone() -> None:
    before = torch.random.get_rng_state()
    plan(toy(), 1, network=TINY, steps=2)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("objective", ["dm", "mmd-ridge"])
@pytest.mark.parametrize(
    "given", [{"ipc": 3, "codec": "bits-2"}, {"budget": "2 kB"}, {"budget": "4 kB", "codec": "bits-4"}]
)
def test_the_bytes_of_coded_sets_are_near_what_is_planned_and_never_above_the_most(
    objective: str, given: dict[str, Any]
) -> None:
    expected = plan(toy(), objective=objective, network=TINY, steps=2, **given)
    made = condense(toy(), objective=objective, network=TINY, steps=2, **given)
    assert expected.most is not None
    assert made.nbytes <= expected.most
    assert expected.codec == made.parts[0].codec
    assert expected.ipc == made.record.ipc
    if "budget" in given:  # room for an evaluation is counted
        room = made.with_evaluation(widest_evaluation("toy")).nbytes
        assert abs(expected.nbytes / room - 1) < 0.15
        assert room <= expected.most
    else:
        assert abs(expected.nbytes / made.nbytes - 1) < 0.15


def test_a_raw_set_is_planned_to_the_byte_and_its_most_has_room_for_seconds() -> None:
    expected = plan(toy(), 2, "dm", network=TINY, steps=3)
    assert expected.most is not None
    assert expected.nbytes <= expected.most <= expected.nbytes + 16
    assert expected.codec == "raw"


def test_one_bit_is_advised_against() -> None:
    with pytest.raises(SettingError, match="too small") as refused:
        plan(toy(), None, "dm", network=TINY, steps=1, budget="500 B")
    least = int(str(refused.value).split("needed: ")[1].split()[0])
    tight = plan(toy(), None, "dm", network=TINY, steps=1, budget=least)
    assert tight.codec == "bits-1"
    assert any("in twice the bytes, two bits gain" in text for text in tight.advice)

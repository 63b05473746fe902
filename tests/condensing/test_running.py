"""A run that has to stop; what a run makes when it need not is in test_loop.py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from fedcondense.budgets import budget_bytes
from fedcondense.checkpoints import Checkpoint
from fedcondense.condensing import condense, prepare, run
from fedcondense.condensing.loop import Loop
from fedcondense.contract import Objective, Recipe
from fedcondense.data.images import Data, Spec
from fedcondense.errors import DivergenceError, SettingError
from fedcondense.networks import ConvNet
from fedcondense.objectives import OBJECTIVES, with_learned_labels
from fedcondense.parametrizations import MultiFormation, Pixels
from fedcondense.sets.fitting import Within
from fedcondense.sets.forecast import widest_evaluation
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sources import Fresh, Pool, TrainedPool
from fedcondense.sources.trajectories import Trajectories

TINY = partial(ConvNet, width=4, depth=2)
SEVEN = "+".join(f"convnet{depth}-w16{norm}" for depth in (1, 2) for norm in ("", "-none", "-group")) + "+mlp"


def toy(counts: tuple[int, ...] = (20, 15, 12)) -> Data:
    spec = Spec("toy", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (sum(counts), 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Data(images, torch.arange(3).repeat_interleave(torch.tensor(counts)), spec)


def bytes_of(synthetic: SyntheticSet) -> bytes:
    return synthetic.with_record(seconds=0.0).to_bytes()


class Clock:
    """A clock on which a step takes a second, and nothing else takes any."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, step = 1000.0, Loop.step

        def timed(loop: Loop) -> torch.Tensor:
            loss = step(loop)
            self.now += 1
            return loss

        monkeypatch.setattr(Loop, "step", timed)
        monkeypatch.setattr("time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class TestUntil:
    @pytest.mark.parametrize("network", [TINY, SEVEN], ids=["one", "seven"])
    @pytest.mark.parametrize("objective", ["mmd-ridge", "dm", "dsa", "frepo"])
    def test_it_stops_before_the_step_that_would_begin_too_late(
        self, objective: str, network: Any, clock: Clock
    ) -> None:
        made = run(prepare(toy(), 1, objective, "pixels", network=network, steps=30), until=clock.now + 6.5)
        assert made.record.steps == 7
        assert clock.now == 1007

    def test_what_is_returned_is_what_as_many_steps_make(self, clock: Clock) -> None:
        """Steps of the same schedule: a run of seven steps would have a smaller step size at its end."""
        loop = prepare(toy(), 2, "mmd-ridge", "pixels", network=TINY, steps=30)
        for _ in range(7):
            loop.step()
        again = prepare(toy(), 2, "mmd-ridge", "pixels", network=TINY, steps=30)
        assert bytes_of(run(again, until=clock.now + 7)) == bytes_of(loop.finished())

    def test_a_run_with_enough_time_is_the_same_to_the_bit(self, clock: Clock) -> None:
        settings: dict[str, Any] = {"network": TINY, "steps": 9}
        assert bytes_of(condense(toy(), 2, until=clock.now + 9, **settings)) == bytes_of(condense(toy(), 2, **settings))

    def test_too_few_steps_are_refused_with_what_it_would_take(self, clock: Clock) -> None:
        with pytest.raises(SettingError) as refused:
            condense(toy(), 1, network=TINY, steps=100, until=clock.now + 4)
        assert str(refused.value) == (
            "the time was up after 4.0 s, at step 4 of 100; needed for a set worth having: 10 steps (about 6 s more). "
            "Allow more time, or take fewer steps, a smaller ipc or a smaller network"
        )

    @pytest.mark.parametrize(("seconds", "steps"), [(9, None), (10, 10)])
    def test_a_tenth_of_the_steps_is_enough(self, seconds: float, steps: int | None, clock: Clock) -> None:
        loop = prepare(toy(), 1, "dm", "pixels", network=TINY, steps=100)
        if steps is None:
            with pytest.raises(SettingError, match="at step 9 of 100; needed for a set worth having: 10 steps"):
                run(loop, until=clock.now + seconds)
        else:
            assert run(loop, until=clock.now + seconds).record.steps == steps

    def test_a_moment_that_has_passed_takes_no_step(self, clock: Clock) -> None:
        with pytest.raises(SettingError, match=r"at step 0 of 5; needed for a set worth having: 1 steps\. Allow"):
            condense(toy(), 1, "dm", network=TINY, steps=5, until=clock.now - 1)

    def test_no_steps_need_no_time(self, clock: Clock) -> None:
        assert condense(toy(), 1, network=TINY, steps=0, until=clock.now - 1).record.steps == 0

    def test_what_broke_since_the_last_look_is_not_returned(
        self, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fedcondense.condensing.running._LOOK_S", math.inf)
        loop = prepare(toy(), 1, "dm", "pixels", network=TINY, steps=30)
        loop.codes["images"].data.fill_(math.nan)
        with pytest.raises(DivergenceError, match=r"at step 6 of 30; .* a smaller step size"):
            run(loop, until=clock.now + 6)

    def test_of_a_first_step_no_step_size_is_to_blame(self, clock: Clock) -> None:
        loop = prepare(toy(), 1, "dm", "pixels", network=TINY, steps=6)
        loop.codes["images"].data.fill_(math.nan)
        with pytest.raises(DivergenceError, match=r"at step 1 of 6; .*nothing was learned before it"):
            run(loop)

    @pytest.mark.parametrize("seconds", [2, 7])  # refused, and returned
    @pytest.mark.parametrize("objective", ["mmd-ridge", "idc", "mtt", "frepo"])
    def test_its_checkpoint_goes_on_to_the_same_set(
        self, objective: str, seconds: float, clock: Clock, tmp_path: Path
    ) -> None:
        kept = Checkpoint(tmp_path / "c", resume=True)
        settings: dict[str, Any] = {"network": TINY, "steps": 30}
        whole = condense(toy(), 1, objective, **settings)
        expected: AbstractContextManager[Any] = nullcontext()
        if seconds == 2:
            expected = pytest.raises(SettingError, match=r"/c goes on from here$")
        with expected:
            condense(toy(), 1, objective, checkpoint=kept, until=clock.now + seconds, **settings)
        assert bytes_of(condense(toy(), 1, objective, checkpoint=kept, **settings)) == bytes_of(whole)


def ticking(start: float = 0.0) -> Iterator[float]:
    """Yield a clock that each look moves by a second."""
    while True:
        yield start
        start += 1.0


class TestWithinAStep:
    """Work that may be long looks at the clock between its pieces: each look of this clock takes a second."""

    @pytest.mark.parametrize(
        ("objective", "source"),
        [
            ("mtt", partial(Trajectories, experts=2, latest=4)),
            ("dm-ridge", partial(TrainedPool, size=3, age=200)),
        ],
    )
    def test_training_on_real_data_stops_and_the_loop_goes_on_as_if_it_had_not_begun(
        self, objective: str, source: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = replace(OBJECTIVES[objective].recipe, source=source, steps=6)
        whole = run(prepare(toy(), 1, objective, "pixels", network=TINY, recipe=recipe))
        loop = prepare(toy(), 1, objective, "pixels", network=TINY, recipe=recipe)
        ticks = ticking()
        with monkeypatch.context() as patch:
            patch.setattr("time.monotonic", lambda: next(ticks))
            with pytest.raises(SettingError, match="at step 0 of 6"):
                run(loop, until=30.0)
            assert next(ticks) < 40
        assert bytes_of(run(loop)) == bytes_of(whole)

    def test_observing_many_records_stops_between_two_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of 47 records, eight at a time are six pieces."""
        monkeypatch.setattr("fedcondense.objectives.features._REAL_AT_ONCE", 8)
        recipe = replace(OBJECTIVES["mmd-ridge"].recipe, source=partial(Pool, size=3), steps=6)
        whole = run(prepare(toy(), 1, "mmd-ridge", "pixels", network=TINY, recipe=recipe))
        loop = prepare(toy(), 1, "mmd-ridge", "pixels", network=TINY, recipe=recipe)
        ticks = ticking()
        with monkeypatch.context() as patch:
            patch.setattr("time.monotonic", lambda: next(ticks))
            with pytest.raises(SettingError, match="at step 0 of 6"):
                run(loop, until=6.0)
            assert next(ticks) < 12
            assert not loop.observations
        assert bytes_of(run(loop)) == bytes_of(whole)


def test_condense_is_prepare_then_run() -> None:
    whole = condense(toy(), 2, "mmd-ridge", "multi-formation", network=TINY, steps=5, seed=3)
    assert bytes_of(run(prepare(toy(), 2, "mmd-ridge", "multi-formation", network=TINY, steps=5, seed=3))) == bytes_of(
        whole
    )


class Means(Objective):
    """One of a user's own that says nothing of how it is run."""

    def observe(self, draw: Any, data: Any) -> None:
        pass

    def loss(self, draw: Any, observed: Any, synthetic: Any) -> torch.Tensor:
        loss: torch.Tensor = synthetic.images.mean()
        return loss


class Rounded(Means):
    """Whose loss no gradient passes."""

    recipe: ClassVar[Recipe] = Recipe(steps=2, lr=0.1, source=Fresh)

    def loss(self, draw: Any, observed: Any, synthetic: Any) -> torch.Tensor:
        return synthetic.images.detach().mean()  # type: ignore[no-any-return]


def test_an_objective_of_one_s_own_says_how_it_is_run_and_moves_the_images() -> None:
    with pytest.raises(SettingError, match=r"objective Means does not say how it is run; add .*recipe: ClassVar"):
        condense(toy(), 1, Means(), network=TINY)
    with pytest.raises(SettingError, match="does not follow from the synthetic images"):
        condense(toy(), 1, Rounded(), network=TINY)


class TestBudgets:
    quick: ClassVar[dict[str, Any]] = {"objective": "dm", "network": TINY, "steps": 2}

    @pytest.mark.parametrize("budget", ["1200 B", "1500 B", 2000, "4 kB", "20 kB"])
    @pytest.mark.parametrize("counts", [(20, 15, 12), (40, 0, 1)])
    def test_the_file_never_passes_the_budget_with_its_evaluation(
        self, budget: int | str, counts: tuple[int, ...]
    ) -> None:
        made = condense(toy(counts), budget=budget, **self.quick)
        bound = budget_bytes(budget)
        assert made.with_evaluation(widest_evaluation("toy")).nbytes <= bound
        kept = made.counts().tolist()
        assert all(1 <= images <= records for images, records in zip(kept, counts, strict=True) if records)
        assert all(images == 0 for images, records in zip(kept, counts, strict=True) if not records)
        assert made.record.ipc >= max(kept)
        assert made.parts[0].codec.startswith("bits-")

    def test_a_text_with_a_unit_in_the_place_of_ipc_is_a_budget(self) -> None:
        first = condense(toy(), "2 kB", **self.quick)
        second = condense(toy(), budget=Within(2000), **self.quick)
        assert bytes_of(first) == bytes_of(second)

    def test_a_budget_takes_tiles_where_there_is_something_to_lose(self) -> None:
        large = Data(toy().images.repeat(1, 1, 2, 2), toy().labels, replace(toy().spec, shape=(1, 16, 16)))
        assert condense(large, "3 kB", **self.quick).parts[0].parametrization == MultiFormation(2)
        assert condense(large, "3 kB", parametrization="pixels", **self.quick).parts[0].parametrization == Pixels()
        assert condense(large, 1, **self.quick).parts[0].parametrization == Pixels()

    def test_a_codec_without_a_budget_stores_all_images_in_it(self) -> None:
        raw, coded = (condense(toy(), 3, codec=codec, **self.quick) for codec in (None, "bits-3"))
        assert coded.parts[0].codec == "bits-3"
        assert coded.nbytes < raw.nbytes
        assert bytes_of(raw.recode("bits-3").with_record(seconds=1.0)) == bytes_of(coded.with_record(seconds=1.0))

    def test_learned_labels_and_shared_codes_are_within_their_budget_too(self) -> None:
        soft = condense(
            toy(), "3 kB", with_learned_labels(OBJECTIVES["mmd-ridge"]), network=TINY, steps=2, codec="bits-2"
        )
        assert soft.parts[0].targets.ndim == 2
        assert soft.with_evaluation(widest_evaluation("toy")).nbytes <= 3000
        shared = condense(toy(), "5 kB", parametrization="bases", **self.quick)
        assert shared.parts[0].codec == "raw"
        assert shared.with_evaluation(widest_evaluation("toy")).nbytes <= 5000

    def test_a_budget_that_is_too_small_is_refused_before_the_first_step(self) -> None:
        with pytest.raises(SettingError, match=r"too small for one image of each of 3 classes of toy in 'bits-1'"):
            condense(toy(), "500 B", **self.quick)
        with pytest.raises(SettingError, match="give one of them"):
            condense(toy(), 3, budget="2 kB", **self.quick)

    def test_a_run_goes_on_from_its_checkpoint_to_the_same_file(self, tmp_path: Path) -> None:
        kept = Checkpoint(tmp_path / "kept", every_s=0)
        whole = condense(toy(), "2 kB", checkpoint=kept, **self.quick)
        again = condense(toy(), "2 kB", checkpoint=Checkpoint(tmp_path / "kept", resume=True), **self.quick)
        assert bytes_of(whole) == bytes_of(again)

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedcondense.checkpoints import Checkpoint
from fedcondense.condensing import Progress, condense, prepare, running
from fedcondense.condensing.holders import Own
from fedcondense.condensing.loop import Loop, onto_simplex
from fedcondense.contract import Draw, Objective, Recipe, Synthetic
from fedcondense.data.images import Data, Spec
from fedcondense.errors import DataError, DivergenceError, ResumeError, SettingError
from fedcondense.networks import ConvNet
from fedcondense.objectives import OBJECTIVES
from fedcondense.parametrizations import MultiFormation
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sources import Fresh, Pool

TINY = partial(ConvNet, width=8, depth=2)


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the loss, report and keep a checkpoint after each step."""
    monkeypatch.setattr(running, "_LOOK_S", 0.0)


def toy(counts: tuple[int, ...] = (20, 15, 12), shape: tuple[int, int, int] = (1, 8, 8)) -> Data:
    names = tuple("abcdefgh"[: len(counts)])
    channels = shape[0]
    spec = Spec("toy", shape, names, (0.5, 0.4, 0.3)[:channels], (0.25, 0.2, 0.3)[:channels])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (sum(counts), *shape), generator=generator, dtype=torch.uint8)
    return Data(images, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), spec)


def bytes_of(synthetic: SyntheticSet) -> bytes:
    return synthetic.with_record(seconds=0.0).to_bytes()


class Linear(Objective):
    """The loss is the sum of all normalised images: every gradient is one."""

    recipe = Recipe(steps=3, lr=0.001, source=Fresh, optimizer="sgd", betas=(0.0, 0.0), decay=1.0, start="grey")

    def __init__(self, sign: float = 1.0) -> None:
        self.sign = sign

    def __repr__(self) -> str:
        return "Linear()"

    def observe(self, draw: Draw, data: Data) -> int:
        return len(data)

    def loss(self, draw: Draw, observed: int, synthetic: Synthetic) -> Tensor:
        return self.sign * synthetic.images.sum()


def codes_after(steps: int, recipe: Recipe, ipc: int = 1, shape: tuple[int, int, int] = (1, 8, 8)) -> Tensor:
    data = toy(shape=shape)
    loop = prepare(data, ipc, Linear(), "pixels", network=TINY, recipe=replace(recipe, steps=steps))
    for _ in range(steps):
        loop.step()
    return loop.codes["images"].detach()


class TestStep:
    def test_a_gradient_goes_through_normalising_into_the_codes(self) -> None:
        """d(x - mean) / std is 1 / std, channel by channel: by hand, down the gradient."""
        shape = (3, 8, 8)
        moved = codes_after(2, Linear.recipe, shape=shape) - codes_after(0, Linear.recipe, shape=shape)
        expected = -2 * 0.001 / torch.tensor([0.25, 0.2, 0.3])
        inside = (codes_after(2, Linear.recipe, shape=shape) > 0).flatten(2)
        for c in range(3):
            torch.testing.assert_close(
                moved.flatten(2)[:, c][inside[:, c]], expected[c].expand(int(inside[:, c].sum())), rtol=1e-3, atol=1e-7
            )

    def test_codes_stay_in_the_unit_range(self) -> None:
        recipe = replace(Linear.recipe, lr=0.3)
        assert torch.equal(codes_after(3, recipe), torch.zeros(3, 1, 8, 8))

    def test_a_step_size_for_normalised_images_is_scaled_by_the_variance(self) -> None:
        plain, scaled = Linear.recipe, replace(Linear.recipe, normalised=True, lr=0.001 / 0.25**2)
        torch.testing.assert_close(codes_after(1, plain), codes_after(1, scaled))

    def test_a_step_size_per_image_grows_with_ipc(self) -> None:
        plain, each = replace(Linear.recipe, lr=0.004), replace(Linear.recipe, lr_per_image=True)
        torch.testing.assert_close(codes_after(1, plain, ipc=4), codes_after(1, each, ipc=4))

    def test_clipping_bounds_the_gradient_of_all_codes_together(self) -> None:
        """Each of 192 gradients is 4; together they are 4 sqrt(192), cut to 1."""
        clipped = replace(Linear.recipe, clip=1.0, lr=0.1)
        moved = codes_after(0, clipped) - codes_after(1, clipped)
        torch.testing.assert_close(moved, torch.full_like(moved, 0.1 / math.sqrt(192)), rtol=1e-3, atol=1e-6)

    def test_clipping_by_growth_follows_the_running_mean_of_norms(self) -> None:
        """Gradients of 1, 1, 10, 10: the third is cut to two means of 1, the fourth to two means of 0.9 + 0.2."""
        recipe = replace(Linear.recipe, clip_growth=2.0, lr=1e-4, steps=4)
        objective = Linear()
        loop = prepare(toy(), 1, objective, "pixels", network=TINY, recipe=recipe)
        moved = []
        for sign in (1, 1, 10, 10):
            objective.sign = sign
            before = loop.codes["images"].detach().clone()
            loop.step()
            moved.append(float((before - loop.codes["images"].detach()).mean()) / (1e-4 / 0.25))
        assert moved == pytest.approx([1, 1, 2, 2.2], rel=1e-2)
        assert loop.norm is not None
        assert float(loop.norm) == pytest.approx(4 * math.sqrt(192) * (0.9 * 1.1 + 0.22), rel=1e-3)

    def test_the_running_mean_of_norms_is_kept_in_a_checkpoint(self, tmp_path: Path, every_step: None) -> None:
        def run(checkpoint: Checkpoint | None, stop: int | None = None) -> bytes:
            def progress(now: Progress) -> None:
                if now.step == stop:
                    raise KeyboardInterrupt

            recipe = replace(OBJECTIVES["dm"].recipe, optimizer="sgd", lr=0.5, clip_growth=1.0, steps=8)
            return bytes_of(
                condense(toy(), 1, "dm", network=TINY, recipe=recipe, checkpoint=checkpoint, progress=progress)
            )

        unbroken, path = run(None), tmp_path / "c"
        with pytest.raises(KeyboardInterrupt):
            run(Checkpoint(path, 0), stop=5)
        assert run(Checkpoint(path, 0, resume=True)) == unbroken

    def test_the_step_size_falls_along_a_cosine_to_its_share(self) -> None:
        recipe = replace(Linear.recipe, decay=0.2, steps=4)
        loop = prepare(toy(), 1, Linear(), "pixels", network=TINY, recipe=recipe)
        sizes = []
        for _ in range(4):
            loop.step()
            sizes.append(loop.optimizer.param_groups[0]["lr"] / 0.001)
        assert sizes == pytest.approx([0.2 + 0.8 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)])

    def test_momentum_is_that_of_sgd(self) -> None:
        """1 and 1 + 0.5: two and a half steps after two."""
        with_momentum, without = replace(Linear.recipe, betas=(0.5, 0.0)), replace(Linear.recipe, lr=0.0025)
        torch.testing.assert_close(codes_after(2, with_momentum), codes_after(1, without))

    def test_multi_formation_gathers_the_gradient_of_all_pixels_of_a_tile(self) -> None:
        """Enlarging by two repeats each stored pixel four times in all, and the sum of a bilinear line is kept."""
        loop = prepare(toy(), 1, Linear(), MultiFormation(2), network=TINY)
        before = loop.codes["images"].detach().clone()
        loop.step()
        moved = before - loop.codes["images"].detach()
        torch.testing.assert_close(moved, torch.full_like(moved, 0.001 * 4 / 0.25), rtol=1e-3, atol=1e-6)

    def test_an_unknown_optimizer_is_refused(self) -> None:
        with pytest.raises(SettingError, match="optimizer 'lion'; needed: 'adam' or 'sgd'"):
            codes_after(0, replace(Linear.recipe, optimizer="lion"))


class TestPrefixes:
    def moves(self, steps: int, parametrization: str | MultiFormation = "pixels") -> Tensor:
        """Return how often each stored image was moved, (3 classes, 4 images): each move has the same length."""
        recipe = replace(Linear.recipe, steps=steps, lr=1e-4)
        loop = prepare(toy(), 4, Linear(), parametrization, network=TINY, recipe=recipe, prefixes=True)
        before = loop.codes["images"].detach().clone()
        for _ in range(steps):
            loop.step()
        moved = (before - loop.codes["images"].detach()).flatten(1).amax(1)
        return (moved / moved.max() * steps).round().view(3, 4)

    def test_every_other_step_moves_the_first_images_of_each_class_alone(self) -> None:
        once = self.moves(1)
        assert torch.equal(once, torch.ones(3, 4))
        counts = self.moves(40)
        assert bool((counts.diff(dim=1) <= 0).all())
        assert bool((counts[:, 0] == 40).all())
        assert bool(((counts[:, 3] > 20) & (counts[:, 3] < 36)).all())  # 20, and a quarter of the other 20

    def test_the_small_images_of_a_stored_one_move_together(self) -> None:
        counts = self.moves(40, MultiFormation(2))
        assert bool((counts.diff(dim=1) <= 0).all())
        assert bool((counts[:, 0] == 40).all())

    def test_the_first_image_alone_is_closer_to_its_class_than_without(self) -> None:
        """By the class means of pixels, which a linear network without augmentation would see."""
        data, distances = toy(), []
        means = torch.stack([data.images[data.labels == c].float().mean(0) / 255 for c in range(3)])
        for prefixes in (False, True):
            made = condense(data, 4, "dm", network=TINY, steps=60, prefixes=prefixes).restrict(
                data.spec.classes, dict.fromkeys(data.spec.classes, 1)
            )
            assert made is not None
            distances.append(float((made.pixels().images - means).square().mean()))
        assert distances[1] < distances[0]

    def test_a_resumed_run_needs_the_same_setting(self, tmp_path: Path) -> None:
        checkpoint = Checkpoint(tmp_path / "run", every_s=0)
        condense(toy(), 2, network=TINY, steps=2, prefixes=True, checkpoint=checkpoint)
        with pytest.raises(ResumeError, match="prefixes was True, is False"):
            condense(toy(), 2, network=TINY, steps=2, checkpoint=replace(checkpoint, resume=True))


class TestSeeds:
    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_equal_seeds_give_equal_bytes_whatever_the_global_state(self, objective: str) -> None:
        made = []
        for state in (1, 2):
            torch.manual_seed(state)
            before = torch.random.get_rng_state()
            made.append(bytes_of(condense(toy(), 2, objective, network=TINY, steps=3, seed=4)))
            assert torch.equal(torch.random.get_rng_state(), before)
        assert made[0] == made[1]

    def test_other_seeds_give_other_sets(self) -> None:
        first, second = (condense(toy(), 2, "dm", network=TINY, steps=3, seed=seed) for seed in (0, 1))
        assert not torch.equal(first.pixels().images, second.pixels().images)

    def test_the_seed_moves_start_and_draws_apart(self) -> None:
        """With a start that the seed does not reach, the draws still differ."""
        starts = [condense(toy((3, 3, 3)), 3, "dm", network=TINY, steps=0, start="real", seed=s) for s in (0, 1)]
        assert sorted(starts[0].pixels().images.sum((1, 2, 3)).tolist()) == pytest.approx(
            sorted(starts[1].pixels().images.sum((1, 2, 3)).tolist())
        )
        loops = [prepare(toy(), 1, "dm", "pixels", network=TINY, seed=s) for s in (0, 1)]
        assert not torch.equal(loops[0].draws.get_state(), loops[1].draws.get_state())


class TestPool:
    def run(self, monkeypatch: pytest.MonkeyPatch, forget: bool) -> tuple[Tensor, int]:
        asked: list[Any] = []
        observe = Own.observe

        def spy(self: Own, objective: Objective, draw: Draw) -> Any:
            asked.append(draw.key)
            return observe(self, objective, draw)

        monkeypatch.setattr(Own, "observe", spy)
        recipe = replace(OBJECTIVES["dm-ridge"].recipe, source=partial(Pool, size=3))
        loop = prepare(toy(), 2, "dm-ridge", "pixels", network=TINY, steps=9, recipe=recipe)
        for _ in range(9):
            loop.step()
            if forget:
                loop.observations.clear()
        monkeypatch.undo()
        return loop.codes["images"].detach(), len(asked)

    def test_what_the_pool_keeps_equals_asking_each_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cached, asked_once = self.run(monkeypatch, forget=False)
        fresh, asked_often = self.run(monkeypatch, forget=True)
        assert torch.equal(cached, fresh)
        assert (asked_once, asked_often) == (3, 9)

    def test_fresh_draws_are_never_kept(self) -> None:
        loop = prepare(toy(), 1, "dm", "pixels", network=TINY, recipe=replace(OBJECTIVES["dm"].recipe, source=Fresh))
        loop.step()
        assert not loop.observations


class TestData:
    @pytest.mark.parametrize("ipc", [0, -1, 1.5, True])
    def test_an_ipc_that_is_no_whole_number_from_one_is_refused(self, ipc: Any) -> None:
        with pytest.raises(SettingError, match=r"ipc .*; needed: a whole number from 1, below"):
            condense(toy(), ipc, network=TINY)

    def test_a_number_in_a_text_is_refused_since_it_may_be_meant_as_bytes(self) -> None:
        with pytest.raises(SettingError, match=r"ipc '2'; needed: images per class as a number, or a budget with its"):
            condense(toy(), "2", network=TINY)

    def test_a_class_smaller_than_ipc_gives_what_it_has_and_the_log_says_so(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            made = condense(toy((20, 2, 0, 5)), 4, network=TINY, steps=1)
        assert made.counts().tolist() == [4, 2, 0, 4]
        assert "ipc 4 is more than the records of some classes; they get what is there: b (2)" in caplog.text

    def test_under_a_budget_the_log_speaks_of_the_budget(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            condense(toy((20, 2)), "9 kB", network=TINY, steps=1)
        assert "a budget of 9,000 bytes has room for" in caplog.text
        assert "b (2)" in caplog.text
        assert "ipc" not in caplog.text

    @pytest.mark.parametrize("objective", OBJECTIVES)
    @pytest.mark.parametrize("counts", [(0, 12, 0, 9), (0, 7, 0), (1,), (1, 1, 1)])
    def test_absent_single_and_tiny_classes(self, objective: str, counts: tuple[int, ...]) -> None:
        made = condense(toy(counts), 1, objective, network=TINY, steps=2)
        assert made.counts().tolist() == [min(1, n) for n in counts]
        assert made.record.counts == counts
        assert made.classes == toy(counts).spec.classes

    @pytest.mark.parametrize("limit", [0, -0.5, 1.01, math.nan])
    def test_a_limit_outside_its_range_is_refused(self, limit: float) -> None:
        with pytest.raises(SettingError, match=r"limit .*; needed: a share of the records of a class"):
            condense(toy(), 1, network=TINY, limit=limit)

    def test_no_images_are_refused(self) -> None:
        with pytest.raises(DataError, match="toy: no images to condense"):
            condense(toy().subset(torch.tensor([], dtype=torch.int64)), 1, network=TINY)

    @pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 12, 20)])
    @pytest.mark.parametrize("parametrization", ["pixels", "multi-formation"])
    def test_grey_and_colour_from_8_to_64_pixels(self, shape: tuple[int, int, int], parametrization: str) -> None:
        small = partial(ConvNet, width=4, depth=2)
        made = condense(toy((6, 5), shape), 1, "dm-ridge", parametrization, network=small, steps=2)
        assert made.shape == shape
        assert made.decode().images.shape == (2 if parametrization == "pixels" else 8, *shape)

    @pytest.mark.parametrize(("side", "name"), [(8, "convnet2-w32"), (28, "convnet3-w32"), (64, "convnet4-w32")])
    def test_the_default_network_is_as_deep_as_the_images_are_large(self, side: int, name: str) -> None:
        assert condense(toy((3, 3), (1, side, side)), 1, "dm", steps=0).record.network == name

    @pytest.mark.parametrize("counts", [(5, 9, 3), (20, 39, 12), (60, 40, 80)])
    def test_no_image_is_a_record_from_the_default_start(self, counts: tuple[int, int, int]) -> None:
        data = toy(counts)
        for steps in (0, 2):
            images = condense(data, 3, network=TINY, steps=steps).parts[0].codes["images"]
            assert torch.cdist(images.flatten(1).float(), data.images.flatten(1).float()).min() > 0

    def test_the_real_start_is_records(self) -> None:
        data = toy()
        images = condense(data, 3, network=TINY, steps=0, start="real").parts[0].codes["images"]
        assert torch.cdist(images.flatten(1).float(), data.images.flatten(1).float()).amin(1).max() == 0


class TestRecord:
    def test_it_says_how_the_set_was_made(self) -> None:
        record = condense(toy(), 2, "dsa", network="convnet2-w32", steps=2, seed=9, start="grey").record
        assert (record.data, record.method, record.ipc, record.seed) == ("toy", "dsa", 2, 9)
        assert (record.network, record.start, record.steps) == ("convnet2-w32", "grey", 2)
        assert record.counts == (20, 15, 12)
        assert record.augmentation == toy().spec.operations

    def test_an_objective_of_other_settings_is_named_by_its_repr(self) -> None:
        objective = replace(OBJECTIVES["dm"], per_class=5)  # type: ignore[type-var]
        assert condense(toy(), 1, objective, network=TINY, steps=0).record.method == repr(objective)

    def test_progress_tells_of_every_look(self, every_step: None) -> None:
        seen: list[Progress] = []
        condense(toy(), 1, "dm", network=TINY, steps=4, progress=seen.append)
        assert [(p.step, p.steps) for p in seen] == [(k, 4) for k in range(1, 5)]
        assert seen[-1].remaining == 0
        assert all(p.loss > 0 and p.seconds >= 0 for p in seen)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "dmm"}, r"no objective is called 'dmm'; did you mean 'dm'\? all of them: dc, dd, dm, "),
        ({"parametrization": "pixel"}, r"no parametrization is called 'pixel'; did you mean 'pixels'"),
        ({"network": "convnet"}, r"no network is called 'convnet'"),
        ({"start": "gausian"}, r"no start is called 'gausian'; did you mean 'gaussian'"),
        ({"steps": -1}, r"steps -1; needed: a whole number from 0, below"),
        ({"steps": 1.5}, r"steps 1\.5; needed: a whole number from 0, below"),
        (
            {"parametrization": MultiFormation(3)},
            r"factor 3 does not divide images of 8x8; factors that do: \[2, 4, 8\]",
        ),
        ({"network": partial(ConvNet, depth=4)}, r"a ConvNet of depth 4 halves 8x8 to nothing"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_first_step(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loop, "step", lambda self: pytest.fail("a step was taken"))
    with pytest.raises(SettingError, match=message):
        condense(toy(), 1, **settings)


@dataclass(frozen=True)
class MeanColour(Objective):
    """A new objective as a user writes one: match the mean image of each class, and learn a shift beside it."""

    recipe: ClassVar[Recipe] = Recipe(steps=30, lr=0.02, source=Fresh, start="noise")

    def observe(self, draw: Draw, data: Data) -> Tensor:
        images, targets = data.batch()
        return torch.einsum("nk,nchw->kchw", targets / targets.sum(0).clamp_min(1), images)

    def extras(self) -> dict[str, Tensor]:
        return {"shift": torch.zeros(())}

    def loss(self, draw: Draw, observed: Tensor, synthetic: Synthetic) -> Tensor:
        return (synthetic.images + synthetic.extras["shift"] - observed[synthetic.targets.argmax(1)]).square().mean()


class TestNewObjective:
    def test_it_works_by_name_and_reaches_its_optimum(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(OBJECTIVES, "mean-colour", MeanColour())
        data = toy()
        made = condense(data, 1, "mean-colour", network=TINY, steps=300)
        assert made.record.method == repr(MeanColour())
        for c, image in enumerate(made.pixels().images):
            difference = image - data.images[data.labels == c].float().mean(0) / 255
            assert (difference - difference.mean()).abs().max() < 0.02  # all but the shift, which was learned

    def test_what_it_learns_beside_the_images_is_kept_in_a_checkpoint(self, tmp_path: Path, every_step: None) -> None:
        def run(checkpoint: Checkpoint | None, stop: int | None = None) -> bytes:
            def progress(now: Progress) -> None:
                if now.step == stop:
                    raise KeyboardInterrupt

            return bytes_of(
                condense(toy(), 1, MeanColour(), network=TINY, steps=8, checkpoint=checkpoint, progress=progress)
            )

        unbroken, path = run(None), tmp_path / "c"
        with pytest.raises(KeyboardInterrupt):
            run(Checkpoint(path, 0), stop=5)
        assert run(Checkpoint(path, 0, resume=True)) == unbroken


@dataclass(frozen=True)
class Wanted(Objective):
    """The squared distance of all targets from fixed ones, and of all images from white: the optimum is known."""

    learn_labels: bool = True
    separable: ClassVar[bool] = False
    recipe: ClassVar[Recipe] = Recipe(steps=200, lr=0.02, source=Fresh, start="noise")

    def observe(self, draw: Draw, data: Data) -> Tensor:
        return torch.tensor([0.5, 0.2, -0.3, 0.3])

    def loss(self, draw: Draw, observed: Tensor, synthetic: Synthetic) -> Tensor:
        return (synthetic.targets - observed).square().sum() + 1e-3 * (synthetic.images - 2).square().sum()


class TestLearnedLabels:
    @pytest.mark.parametrize("parametrization", ["pixels", "multi-formation"])
    def test_they_reach_the_nearest_probabilities_of_the_classes_at_hand(self, parametrization: str) -> None:
        """Wanted are 0.5, 0.2, -0.3 and 0.3; the data lack the last class. Of the others, two share the rest."""
        made = condense(toy((9, 9, 9, 0)), 2, Wanted(), parametrization, network=TINY)
        targets = made.parts[0].targets
        assert targets.dtype == torch.float16
        expected = torch.tensor([0.65, 0.35, 0.0, 0.0])
        torch.testing.assert_close(targets.float(), expected.expand(6, 4), rtol=0, atol=1e-3)
        torch.testing.assert_close(made.decode().targets.sum(1), torch.ones(len(made)), rtol=0, atol=1e-3)
        assert made.pixels().images.min() > 0.95
        assert SyntheticSet.from_bytes(made.to_bytes()).parts[0].targets.equal(targets)

    def test_they_stay_put_where_nothing_is_to_be_learned(self) -> None:
        made = condense(toy((9, 9, 9, 0)), 2, Wanted(learn_labels=False), network=TINY)
        assert made.parts[0].targets.tolist() == [0, 0, 1, 1, 2, 2]

    def test_the_gradient_of_a_joined_code_is_that_of_all_its_images(self) -> None:
        """Four images a code: the first step of plain descent is four times as long."""
        recipe = replace(Linear.recipe, lr=0.01)
        moved = []
        for parametrization in ("pixels", "multi-formation"):
            loop = prepare(toy((9, 9, 9, 0)), 1, Wanted(), parametrization, network=TINY, recipe=recipe)
            loop.step()
            moved.append(float(1 - loop.targets.detach()[0, 0]))
        pull = torch.tensor([[2 * (1 - 0.5), 2 * (0 - 0.2), 2 * (0 + 0.3)]])  # of the classes at hand
        pull = pull - pull[0, 0]  # moving all three alike changes nothing
        for count, share in zip((1, 4), moved, strict=True):
            stepped = torch.tensor([[1.0, 0.0, 0.0]]) - 0.01 * count * pull
            expected = onto_simplex(stepped, torch.ones(3, dtype=torch.bool))
            assert share == pytest.approx(1 - float(expected[0, 0]), rel=1e-4)

    def test_a_resumed_run_ends_with_the_same_labels(self, tmp_path: Path, every_step: None) -> None:
        def run(checkpoint: Checkpoint | None, stop: int | None = None) -> bytes:
            def progress(now: Progress) -> None:
                if now.step == stop:
                    raise KeyboardInterrupt

            return bytes_of(condense(toy(), 1, Soft(), network=TINY, steps=8, checkpoint=checkpoint, progress=progress))

        unbroken, path = run(None), tmp_path / "c"
        with pytest.raises(KeyboardInterrupt):
            run(Checkpoint(path, 0), stop=5)
        assert run(Checkpoint(path, 0, resume=True)) == unbroken

    def test_a_sum_over_classes_has_hard_labels(self) -> None:
        objective = Linear()
        objective.learn_labels = True
        with pytest.raises(SettingError, match=r"Linear\(\) is taken class by class.*set learn_labels=False"):
            prepare(toy(), 1, objective, "pixels", network=TINY)

    def test_projection_by_hand(self) -> None:
        rows = torch.tensor([[0.2, 0.3, 0.5], [2.0, 0.0, 0.0], [0.6, 0.6, -3.0], [1.0, 1.0, 1.0]])
        everything = torch.ones(3, dtype=torch.bool)
        expected = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
        torch.testing.assert_close(onto_simplex(rows, everything), expected)

    @settings(max_examples=50)
    @given(st.integers(1, 6), st.integers(0, 2**31), st.floats(0.01, 100))
    def test_no_other_probabilities_are_nearer(self, classes: int, seed: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        rows = scale * torch.randn(4, classes, generator=generator, dtype=torch.float64)
        held = torch.rand(classes, generator=generator) < 0.7
        held[0] = True
        nearest = onto_simplex(rows, held)
        assert (nearest >= 0).all()
        assert not nearest[:, ~held].any()
        torch.testing.assert_close(nearest.sum(1), torch.ones(4, dtype=torch.float64))
        others = torch.rand(200, classes, generator=generator, dtype=torch.float64) * held
        others = others / others.sum(1, keepdim=True)
        distances = (rows - nearest).square().sum(1) - (rows.unsqueeze(1) - others).square().sum(2).amin(1)
        assert (distances <= 1e-9 * scale**2).all()


@dataclass(frozen=True)
class Soft(Wanted):
    """Noisy wishes, so that a run never settles."""

    def observe(self, draw: Draw, data: Data) -> Tensor:
        return torch.rand(3, generator=torch.Generator().manual_seed(draw.seed))


@dataclass(frozen=True)
class Breaks(Objective):
    """Fine for three steps, then not a number."""

    codes_too: bool = False
    recipe: ClassVar[Recipe] = Recipe(steps=9, lr=0.01, source=partial(Pool, size=100, seed=1), start="grey")

    def observe(self, draw: Draw, data: Data) -> None:
        CALLS.append(1)

    def loss(self, draw: Draw, observed: None, synthetic: Synthetic) -> Tensor:
        loss = synthetic.images.square().sum()
        if len(CALLS) <= 3:
            return loss
        return (0 * loss).sqrt() if self.codes_too else loss * math.nan  # the gradient of a root at zero has no number


CALLS: list[int] = []


@pytest.mark.parametrize("codes_too", [False, True])
def test_divergence_stops_with_the_last_good_set(codes_too: bool, every_step: None, tmp_path: Path) -> None:
    CALLS.clear()
    checkpoint = Checkpoint(tmp_path / "c", 0)
    recipe = replace(Breaks.recipe, decay=1.0)
    with pytest.raises(
        DivergenceError, match=r"at step 4 of 9; that of step 3 is kept: try a smaller step size"
    ) as error:
        condense(toy(), 1, Breaks(codes_too), network=TINY, recipe=recipe, checkpoint=checkpoint)
    kept = error.value.synthetic
    assert kept.record.steps == 3
    assert kept.decode().images.isfinite().all()
    CALLS.clear()
    three = condense(toy(), 1, Breaks(), network=TINY, recipe=replace(recipe, steps=3))
    assert torch.equal(kept.pixels().images, three.pixels().images)


class TestAutocast:
    def test_bfloat16_features_make_a_set_close_to_that_of_single_precision(self) -> None:
        """Three steps of Adam at 0.02 move two pixels at most 0.12 apart; rounded gradients move few of them so."""
        exact = condense(toy(), 2, "dm-ridge", network=TINY, steps=3)
        with torch.autocast("cpu", torch.bfloat16):
            rough = condense(toy(), 2, "dm-ridge", network=TINY, steps=3)
        difference = (exact.pixels().images - rough.pixels().images).abs()
        assert 0 < difference.max() <= 0.12
        assert difference.mean() < 0.02

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_every_objective_runs_in_it(self, objective: str) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            made = condense(toy(), 2, objective, network=TINY, steps=3)
        assert made.decode().images.isfinite().all()

    def test_a_checkpoint_of_another_precision_is_refused(self, tmp_path: Path) -> None:
        condense(toy(), 1, network=TINY, steps=1, checkpoint=Checkpoint(tmp_path / "c"))
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(ResumeError, match=r"precision was 'torch.float32', is 'torch.bfloat16'"),
        ):
            condense(toy(), 1, network=TINY, steps=1, checkpoint=Checkpoint(tmp_path / "c", resume=True))

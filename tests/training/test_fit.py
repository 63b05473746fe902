from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcondense.data.augment import OPERATIONS, Augmentation
from fedcondense.data.images import Data, Spec
from fedcondense.errors import DataError, SettingError
from fedcondense.networks import ConvNet, build
from fedcondense.randomness import stream
from fedcondense.training.fit import Fit, accuracy, fit

TINY = partial(ConvNet, width=8, depth=2)
PLAIN = Fit(steps=6, batch=4, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant", augment=False)


def batch(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 8, 8, generator=generator)
    return images, F.one_hot(torch.randint(3, (count,), generator=generator), 3).float()


def linear() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    nn.init.zeros_(module[1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(module[1].bias)  # type: ignore[arg-type]
    return module


def weights_of(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def trained(recipe: Fit = PLAIN, count: int = 8, **settings: object) -> Tensor:
    module = linear()
    fit(module, *batch(count), recipe, **settings)  # type: ignore[arg-type]
    return weights_of(module)


def test_one_full_batch_is_one_step_down_the_gradient() -> None:
    """Softmax regression from zero: the gradient is (1 / K - y) x by hand."""
    images, targets = batch(8)
    module = linear()
    fit(module, images, targets, Fit(1, 8, 0.1, 0.0, 0.0, schedule="constant", augment=False))
    gradient = (1 / 3 - targets).T @ images.flatten(1) / 8
    torch.testing.assert_close(module[1].weight.detach(), -0.1 * gradient)  # type: ignore[index]


def test_soft_targets_are_matched_to_their_probabilities() -> None:
    """The optimum of the cross-entropy is the target itself."""
    images = torch.zeros(1, 1, 8, 8)
    module = linear()
    fit(module, images, torch.tensor([[0.2, 0.3, 0.5]]), Fit(300, 1, 1.0, 0.0, 0.0, schedule="constant", augment=False))
    torch.testing.assert_close(module(images).softmax(1), torch.tensor([[0.2, 0.3, 0.5]]), rtol=1e-3, atol=1e-3)


def test_an_image_of_weight_two_counts_as_two() -> None:
    images, targets = batch(3)
    doubled, weighted = linear(), linear()
    one_step = Fit(1, 8, 0.1, 0.0, 0.0, schedule="constant", augment=False)
    index = torch.tensor([0, 1, 1, 2])
    fit(doubled, images[index], targets[index], one_step)
    fit(weighted, images, targets, one_step, weights=torch.tensor([1.0, 2.0, 1.0]))
    torch.testing.assert_close(weights_of(weighted), weights_of(doubled))


def test_the_scale_of_the_weights_does_not_matter() -> None:
    weights = torch.arange(1.0, 9.0)
    torch.testing.assert_close(trained(weights=weights), trained(weights=1000 * weights))
    assert not torch.allclose(trained(weights=weights), trained())


def test_cutmix_changes_the_training_and_follows_from_the_seed() -> None:
    assert not torch.allclose(trained(replace(PLAIN, cutmix=1.0)), trained())
    assert torch.equal(trained(replace(PLAIN, cutmix=0.5)), trained(replace(PLAIN, cutmix=0.5)))


def test_cutmix_takes_the_place_of_cutout(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []
    draw = Augmentation.draw

    def watched(operations: tuple[str, ...], *given: Any) -> Augmentation:
        seen.append(operations)
        return draw(operations, *given)

    monkeypatch.setattr(Augmentation, "draw", watched)
    for cutmix in (0.0, 0.5):
        trained(replace(PLAIN, augment=True, steps=1, cutmix=cutmix), operations=OPERATIONS)
    assert seen == [OPERATIONS, tuple(name for name in OPERATIONS if name != "cutout")]


@pytest.mark.parametrize("cutmix", [-0.1, 1.1])
def test_cutmix_is_a_probability(cutmix: float) -> None:
    with pytest.raises(SettingError, match="from 0 to 1"):
        Fit(cutmix=cutmix)


def test_every_image_is_seen_once_before_any_is_seen_again() -> None:
    seen: list[float] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def forward(self, images: Tensor) -> Tensor:
            seen.extend(images[:, 0, 0, 0].tolist())
            return images.flatten(1)[:, :3] * self.weight

    images = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 1, 8, 8)
    fit(Spy(), images, batch(10)[1], Fit(5, 4, augment=False))
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))


def test_a_set_smaller_than_a_batch_is_the_batch() -> None:
    torch.testing.assert_close(trained(Fit(5, 64, augment=False)), trained(Fit(5, 8, augment=False)))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0] * 20),
        ("step", [1.0] * 10 + [0.1] * 10),
    ],
)
def test_the_simple_schedules(schedule: str, expected: list[float]) -> None:
    assert step_sizes(schedule) == pytest.approx(expected, rel=1e-4)


def test_one_cycle_warms_up_for_15_percent_and_falls_to_zero() -> None:
    sizes = step_sizes("one-cycle")
    assert sizes[0] == pytest.approx(0.04, rel=1e-4)
    assert sizes[3] == pytest.approx(1.0, rel=1e-4)
    assert sizes[:4] == sorted(sizes[:4])
    assert sizes[3:] == sorted(sizes[3:], reverse=True)
    assert sizes[-1] < 0.01


def step_sizes(schedule: str) -> list[float]:
    """Read the step size off the weights: one parameter whose gradient is always the same."""

    class Ramp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            values.append(self.bias.item())
            return torch.stack([self.bias - self.bias.detach(), torch.zeros(())]).expand(len(images), 2)

    values: list[float] = []
    module = Ramp()
    recipe = Fit(20, 1, 1.0, 0.0, 0.0, schedule=schedule, augment=False)
    fit(module, torch.zeros(1, 1, 8, 8), torch.tensor([[1.0, 0.0]]), recipe)
    values.append(module.bias.item())
    sizes: list[float] = (torch.tensor(values).diff() / 0.5).tolist()  # the gradient is p - y = -0.5
    return sizes


def test_equal_seeds_train_equally_whatever_the_global_state() -> None:
    first, second, other = linear(), linear(), linear()
    for module, seed, state in ((first, 0, 1), (second, 0, 2), (other, 1, 1)):
        torch.manual_seed(state)
        before = torch.random.get_rng_state()
        fit(module, *batch(8), Fit(5, 4), seed=seed, operations=("crop", "rotate"))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(weights_of(first), weights_of(second))
    assert not torch.equal(weights_of(first), weights_of(other))


def test_augmentation_follows_recipe_and_operations() -> None:
    plain = trained(Fit(5, 4, augment=False), operations=("crop",))
    assert torch.equal(plain, trained(Fit(5, 4, augment=True)))
    assert not torch.equal(plain, trained(Fit(5, 4, augment=True), operations=("crop",)))


def test_momentum_and_decay_are_sgd_s() -> None:
    """A naive loop over the same batches with torch's own optimizer."""
    recipe = Fit(5, 4, lr=0.05, schedule="constant", augment=False)
    images, targets = batch(8)
    module = linear()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    generator = stream(0, "fit")
    order = torch.cat([torch.randperm(8, generator=generator) for _ in range(3)])
    for index in order.split(4)[:5]:
        optimizer.zero_grad()
        F.cross_entropy(module(images[index]), targets[index]).backward()
        optimizer.step()
    torch.testing.assert_close(trained(recipe), weights_of(module))


def test_no_steps_change_nothing_and_progress_counts_all() -> None:
    assert not trained(Fit(0)).any()
    calls: list[tuple[int, int]] = []
    trained(progress=lambda step, steps: calls.append((step, steps)))
    assert calls == [(k, 6) for k in range(1, 7)]


def test_a_frozen_network_is_thawed() -> None:
    module = linear().requires_grad_(False)
    fit(module, *batch(8), PLAIN)
    assert weights_of(module).abs().sum() > 0


def test_a_callers_autocast_is_heeded() -> None:
    seen: list[torch.dtype] = []
    module = build(TINY, (1, 8, 8), 3, 0)
    module.classifier.register_forward_hook(lambda m, i, o: seen.append(o.dtype))  # type: ignore[union-attr]
    with torch.autocast("cpu", torch.bfloat16):
        fit(module, *batch(8), Fit(2))
    assert seen == [torch.bfloat16] * 2
    assert all(bool(p.isfinite().all()) for p in module.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosine"}, "schedule 'cosine'; needed: one of one-cycle, step, constant"),
        ({"steps": -1}, "steps -1; needed: a whole number from 0, below"),
        ({"batch": 0}, "batch 0; needed: a whole number from 1, below"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Fit(**settings)  # type: ignore[arg-type]


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(SettingError, match="no images to train on"):
        fit(linear(), torch.zeros(0, 1, 8, 8), torch.zeros(0, 3))


class TestAccuracy:
    SPEC = Spec("toy", (1, 8, 8), ("a", "b", "c"), (0.0,), (1.0,))

    class Says(nn.Module):
        """Says what the first pixel is."""

        def forward(self, images: Tensor) -> Tensor:
            assert not self.training
            return F.one_hot((images[:, 0, 0, 0] * 255).round().long(), 4).float()

    def toy(self, said: list[int], labels: list[int]) -> Data:
        images = torch.tensor(said, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
        return Data(images, torch.tensor(labels), self.SPEC)

    def test_by_hand_with_an_absent_class(self) -> None:
        percent, per_class = accuracy(self.Says(), self.toy([0, 0, 1, 1, 0], [0, 0, 1, 0, 1]))
        assert percent == pytest.approx(60.0)
        torch.testing.assert_close(per_class, torch.tensor([200 / 3, 50.0, torch.nan]), equal_nan=True)

    def test_more_images_than_one_pass_takes(self) -> None:
        labels = [k % 3 for k in range(2500)]
        percent, per_class = accuracy(self.Says(), self.toy([min(k, 1) for k in labels], labels))
        assert percent == pytest.approx(100 * 1667 / 2500)
        assert per_class.tolist() == [100, 100, 0]

    def test_the_mode_of_the_network_is_put_back(self) -> None:
        module = self.Says()
        accuracy(module, self.toy([0], [0]))
        assert module.training
        accuracy(module.eval(), self.toy([0], [0]))
        assert not module.training

    def test_without_images_there_is_nothing_to_say(self) -> None:
        with pytest.raises(DataError, match="no images to test on"):
            accuracy(self.Says(), self.toy([0], [0]).subset(torch.tensor([], dtype=torch.int64)))

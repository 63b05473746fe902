from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedcondense.condensing.holders import Own
from fedcondense.contract import Draw, Synthetic
from fedcondense.data.augment import OPERATIONS
from fedcondense.data.images import Data
from fedcondense.objectives.characteristic import CharacteristicFunction, frequencies, means, wave_distance
from fedcondense.objectives.features import Sum
from fedcondense.objectives.ridge import RidgeRegression
from fedcondense.randomness import stream

Step = tuple[Draw, Data, Synthetic]
MakeStep = Callable[..., Step]

FEW = CharacteristicFunction(count=32)


def naive(draw: Draw, data: Data, synthetic: Synthetic, objective: CharacteristicFunction) -> Tensor:
    """The authors' distance, class by class, with complex numbers in double precision."""
    index = data.per_class(objective.per_class, stream(draw.seed, "real"))
    batch = data.batch(index)

    def waves(images: Tensor, targets: Tensor) -> Tensor:
        features = draw.network.features(draw.augment(images, targets.argmax(1))).double()
        features = features / features.pow(2).sum(1, keepdim=True).sqrt()
        t = frequencies(features.shape[1], objective.count, objective.seed, features.device).double()
        return torch.exp(1j * (features @ t))

    with torch.no_grad():
        real = waves(batch.images, batch.targets)
    fake = waves(synthetic.images, synthetic.targets)
    total = torch.zeros((), dtype=torch.float64)
    for c in range(synthetic.targets.shape[1]):
        mine, weights = batch.targets[:, c] == 1, synthetic.targets[:, c].double()
        if not mine.any() or not weights.any():
            continue
        a, b = real[mine].mean(0), (weights.unsqueeze(1) * fake).sum(0) / weights.sum()
        amplitude = (a.abs() - b.abs()) ** 2
        phase = 2 * (a.abs() * b.abs() - a.real * b.real - a.imag * b.imag)
        total = total + (objective.amplitude * amplitude + (1 - objective.amplitude) * phase).sqrt().mean()
    return total


def fast(
    objective: CharacteristicFunction | Sum, draw: Draw, data: Data, synthetic: Synthetic
) -> tuple[Tensor, Tensor]:
    loss = objective.loss(draw, Own(data).observe(objective, draw), synthetic)
    return loss.detach(), torch.autograd.grad(loss, synthetic.images)[0]


@pytest.mark.parametrize("amplitude", [0.5, 0.2, 0.9])
@pytest.mark.parametrize(("operations", "soft"), [((), False), (OPERATIONS, False), (OPERATIONS, True)])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_equal_the_authors_formula(
    step: MakeStep, seed: int, operations: tuple[str, ...], soft: bool, amplitude: float
) -> None:
    """Absent classes on either side, ragged sizes, hard and soft labels."""
    toy = step(seed, operations=operations, soft=soft)
    objective = replace(FEW, amplitude=amplitude)
    loss, gradient = fast(objective, *toy)
    expected = naive(*toy, objective)
    expected_gradient = torch.autograd.grad(expected, toy[2].images)[0]
    assert loss > 0
    torch.testing.assert_close(loss, expected.detach().float(), rtol=1e-5, atol=0)
    assert (gradient - expected_gradient).abs().max() <= 1e-5 * expected_gradient.abs().max()


def test_per_class_draws_so_many_real_images(step: MakeStep) -> None:
    toy = step()
    objective = replace(FEW, per_class=2)
    loss, _ = fast(objective, *toy)
    torch.testing.assert_close(loss, naive(*toy, objective).detach().float(), rtol=1e-5, atol=0)
    assert not torch.allclose(loss, fast(FEW, *toy)[0])


@pytest.mark.parametrize(("amplitude", "expected"), [(1.0, 0.5), (0.0, math.sqrt(2 * 0.5)), (0.5, math.sqrt(1.25 / 2))])
def test_a_known_value(amplitude: float, expected: float) -> None:
    """1 against i/2: moduli one half apart, at right angles, and sqrt(5)/2 apart in the plane."""
    a, b = 1 + 0j, 0.5j
    assert abs(a - b) == pytest.approx(math.sqrt(1.25))
    first, second = ((torch.tensor([[z.real]]), torch.tensor([[z.imag]])) for z in (a, b))
    assert float(wave_distance(first, second, amplitude)) == pytest.approx(expected)


def test_shares_of_one_half_are_the_distance_in_the_complex_plane() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.polar(torch.rand(3, 7, generator=generator), 6 * torch.rand(3, 7, generator=generator)) for _ in "ab")
    distance = wave_distance((a.real, a.imag), (b.real, b.imag), 0.5)
    torch.testing.assert_close(distance, (a - b).abs().mean(1) / math.sqrt(2))


def test_the_characteristic_function_of_normal_rows_is_the_normal_one() -> None:
    """Directions on a sphere of many dimensions: <t, row> is normal with deviation |t| / sqrt(D), so exp(-|t|^2/2D)."""
    rows = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0))
    real, imaginary = means(FEW.summarise(rows, torch.ones(len(rows), 1)))
    t = frequencies(64, 32, 0, rows.device)
    torch.testing.assert_close(real[0], torch.exp(-t.square().sum(0) / 128), rtol=0, atol=0.03)
    assert imaginary.abs().max() < 0.03


def test_a_single_row_is_a_wave_of_modulus_one() -> None:
    row = torch.tensor([[3.0, 4.0]])
    real, imaginary = means(FEW.summarise(row, torch.ones(1, 1)))
    t = frequencies(2, 32, 0, row.device)
    wave = cmath.exp(1j * float(0.6 * t[0, 5] + 0.8 * t[1, 5]))
    assert complex(real[0, 5], imaginary[0, 5]) == pytest.approx(wave, abs=1e-5)
    torch.testing.assert_close(real.square() + imaginary.square(), torch.ones(1, 32))


def test_the_real_images_themselves_are_at_the_floor(step: MakeStep) -> None:
    """Not at zero: the root of 1e-12 is left for each class."""
    draw, data, _ = step()
    copies = Synthetic(data.batch().images.requires_grad_(), data.batch().targets)
    loss, gradient = fast(FEW, draw, data, copies)
    assert 4e-6 * 0.99 <= float(loss) < 1e-5
    assert gradient.isfinite().all()


def test_it_tells_distributions_of_one_mean_apart_and_pulls_them_together() -> None:
    """Real directions at +-60 degrees, synthetic ones at +-30: down the gradient they open."""

    def rows(degrees: Tensor) -> Tensor:
        angles = torch.stack([degrees, -degrees]) * math.pi / 180
        return torch.stack([angles.cos(), angles.sin()], 1)

    objective, targets = CharacteristicFunction(), torch.ones(2, 1)
    observed = objective.summarise(rows(torch.tensor(60.0)), targets)
    degrees = torch.tensor(30.0, requires_grad=True)
    loss = objective.compare(observed, rows(degrees), targets)
    loss.backward()
    assert degrees.grad is not None
    assert float(degrees.grad) < 0


def test_duplicating_every_image_changes_nothing(step: MakeStep) -> None:
    draw, data, once = step()
    twice = Synthetic(torch.cat([once.images, once.images]).detach().requires_grad_(), once.targets.repeat(2, 1))
    torch.testing.assert_close(fast(FEW, draw, data, twice)[0], fast(FEW, draw, data, once)[0], rtol=1e-5, atol=0)


def test_what_a_pool_keeps_does_not_grow_with_the_data(step: MakeStep) -> None:
    draw, data, _ = step()
    observed = Own(data).observe(FEW, draw)
    assert observed.real.shape == observed.imaginary.shape == (5, 32)
    assert observed.counts.tolist() == [7, 3, 0, 12, 1]


def test_frequencies_are_normal_and_follow_from_the_seed_and_the_width() -> None:
    cpu = torch.device("cpu")
    t = frequencies(50, 400, 3, cpu)
    assert t.shape == (50, 400)
    assert t.mean().abs() < 0.03
    assert t.std() == pytest.approx(1, abs=0.03)
    frequencies.cache_clear()
    assert torch.equal(frequencies(50, 400, 3, cpu), t)
    assert not torch.equal(frequencies(50, 400, 4, cpu), t)


def test_it_adds_up_with_other_objectives_on_the_same_rows(step: MakeStep) -> None:
    toy = step()
    ridge = RidgeRegression(per_class=256)
    both = Sum((FEW, ridge), (3.0, 1.0))
    expected = 3 * fast(FEW, *toy)[0] + ridge.loss(toy[0], Own(toy[1]).observe(ridge, toy[0]), toy[2]).detach()
    torch.testing.assert_close(fast(both, *toy)[0], expected)

"""The default: its formula is transcribed here image by image, apart from the code of the two terms that it joins."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedcondense.condensing.holders import Own
from fedcondense.contract import Draw, Synthetic
from fedcondense.data.images import Data
from fedcondense.objectives import DEFAULT_OBJECTIVE, OBJECTIVES
from fedcondense.objectives.features import FeatureObjective
from fedcondense.objectives.mmd import KernelMeans
from fedcondense.objectives.mmd_ridge import KernelMeansAndRidge
from fedcondense.objectives.ridge import RidgeRegression

Step = tuple[Draw, Data, Synthetic]
MakeStep = Callable[..., Step]


def fast(objective: FeatureObjective, draw: Draw, data: Data, synthetic: Synthetic) -> tuple[Tensor, Tensor]:
    loss = objective.loss(draw, Own(data).observe(objective, draw), synthetic)
    return loss.detach(), torch.autograd.grad(loss, synthetic.images)[0]


def naive(draw: Draw, data: Data, synthetic: Synthetic) -> Tensor:
    """The docstring's formula in double precision, for hard labels, all records and up to 100 images."""
    batch = data.batch(data.per_class(None, torch.Generator()))
    real = draw.network.features(draw.augment(batch.images, batch.targets.argmax(1))).detach().half().double()
    fake = draw.network.features(draw.augment(synthetic.images, synthetic.targets.argmax(1))).double()
    of_real, of_fake = batch.targets.argmax(1), synthetic.targets.argmax(1)
    at_hand = sorted(set(of_real.tolist()))

    spread = torch.cdist(real, real).square().mean()
    discrepancy = torch.zeros((), dtype=torch.float64)
    for c in set(at_hand) & set(of_fake.tolist()):
        r, s = real[of_real == c], fake[of_fake == c]

        def k(a: Tensor, b: Tensor) -> Tensor:
            squared = (a.unsqueeze(1) - b).square().sum(2)
            return torch.stack([torch.exp(-squared / (w * spread)) for w in (0.25, 0.5, 1, 2, 4)]).mean()

        discrepancy = discrepancy + k(r, r) + k(s, s) - 2 * k(r, s)

    centre = torch.tensor([1 / len(at_hand) if c in at_hand else 0.0 for c in range(batch.targets.shape[1])])
    kernel = fake @ fake.T
    ridge = 0.01 * kernel.detach().diagonal().mean() * torch.eye(len(fake), dtype=torch.float64)
    predicted = real @ fake.T @ torch.linalg.solve(kernel + ridge, (synthetic.targets - centre).double())
    error = (predicted - (batch.targets - centre)).square().sum() / (2 * len(real))

    alpha = 1 if len(at_hand) == 1 else min(1, max(0.01, (len(fake) / len(at_hand) / 10) ** 4))
    loss: Tensor = alpha * discrepancy + 3 * error
    return loss


@pytest.mark.parametrize("counts", [(2, 1, 3, 0, 1), (5, 5, 0, 5, 5), (10, 9, 0, 12, 9)])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_are_those_of_the_formula(step: MakeStep, seed: int, counts: tuple[int, ...]) -> None:
    toy = step(seed, synthetic=counts)
    loss, gradient = fast(OBJECTIVES[DEFAULT_OBJECTIVE], *toy)  # type: ignore[arg-type]
    expected = naive(*toy)
    expected_gradient = torch.autograd.grad(expected, toy[2].images)[0]
    torch.testing.assert_close(loss, expected.detach().float(), rtol=1e-4, atol=0)
    assert (gradient - expected_gradient).abs().max() <= 1e-3 * expected_gradient.abs().max()


def test_of_a_single_class_the_regression_says_nothing(step: MakeStep) -> None:
    toy = step(real=(7, 0, 0, 0, 0), synthetic=(2, 0, 0, 0, 0))
    alone, both = fast(KernelMeans(), *toy), fast(KernelMeansAndRidge(), *toy)
    assert math.isfinite(float(alone[0]))
    torch.testing.assert_close(both, alone)


@pytest.mark.parametrize(
    ("counts", "share"), [((2, 1, 3, 0, 1), 0.01), ((5, 5, 0, 5, 5), 1 / 16), ((10, 9, 0, 12, 9), 1)]
)
def test_with_the_regression_it_is_the_weighted_sum_of_both(
    step: MakeStep, counts: tuple[int, ...], share: float
) -> None:
    """The kernel weighs less where a class has few images."""
    toy = step(synthetic=counts)
    means, ridge, both = (fast(o, *toy) for o in (KernelMeans(), RidgeRegression(), KernelMeansAndRidge()))
    for a, b, c in zip(means, ridge, both, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(share * a + 3 * b, c, rtol=1e-4, atol=1e-4 * float(c.abs().max()))


def test_with_the_regression_a_pool_keeps_the_rows_once(step: MakeStep) -> None:
    draw, data, _ = step()
    kernel, regression = Own(data).observe(KernelMeansAndRidge(), draw)
    assert len(kernel.rows) == len(data)
    assert kernel.rows.data_ptr() == regression.rows.data_ptr()


def test_what_was_kept_of_parts_merges_to_what_is_kept_of_all(step: MakeStep) -> None:
    """The default's parts could not be merged once they had been."""
    draw, data, _ = step()
    objective = KernelMeansAndRidge()
    cut = torch.arange(len(data)).split(9)
    kept = [objective.observe(draw, data.subset(index)) for index in cut]
    again = objective.merge([objective.merge(kept[:2]), *kept[2:]])
    whole = objective.merge(kept)
    for a, b in zip([*again[0], *again[1]], [*whole[0], *whole[1]], strict=True):
        assert torch.equal(a, b)

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedcondense.condensing.holders import Own
from fedcondense.contract import Draw, Synthetic
from fedcondense.data.images import Data
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.objectives.features import FeatureObjective, FeatureRows
from fedcondense.objectives.ridge import RidgeRegression, means_and_ridge

Step = tuple[Draw, Data, Synthetic]
MakeStep = Callable[..., Step]


def dense(real: Tensor, real_targets: Tensor, rows: Tensor, targets: Tensor, ridge: float | None = None) -> Tensor:
    """The formula as it is written, in double precision, with an explicit inverse."""
    real, real_targets, rows, targets = (t.double() for t in (real, real_targets, rows, targets))
    present = [c for c in range(targets.shape[1]) if real_targets[:, c].sum() > 0]
    centre = torch.zeros(targets.shape[1], dtype=torch.float64)
    centre[present] = 1 / len(present)
    kernel = rows @ rows.T
    if ridge is None:
        ridge = 0.01 * float(kernel.diagonal().mean())
    inverse = torch.linalg.inv(kernel + ridge * torch.eye(len(rows), dtype=torch.float64))
    predicted = real @ rows.T @ inverse @ (targets - centre)
    loss: Tensor = 0.5 * (predicted - (real_targets - centre)).pow(2).sum() / len(real)
    return loss


def toy_rows(seed: int = 0, *, n: int = 9, width: int = 20, classes: int = 4) -> tuple[FeatureRows, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    real = torch.randn(31, width, generator=generator).half()
    real_targets = torch.eye(classes)[torch.randint(classes, (31,), generator=generator)]
    rows = torch.randn(n, width, generator=generator)
    return FeatureRows(real, real_targets), rows, torch.eye(classes)[torch.arange(n) % classes]


@pytest.mark.parametrize(("n", "width"), [(9, 20), (30, 8), (1, 5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_is_the_dense_formula(seed: int, n: int, width: int) -> None:
    """More rows than features, and fewer."""
    observed, rows, targets = toy_rows(seed, n=n, width=width)
    loss = RidgeRegression().compare(observed, rows, targets)
    expected = dense(*observed, rows, targets)
    assert float(loss) == pytest.approx(float(expected), rel=2e-5)


def test_soft_targets_too() -> None:
    observed, rows, _ = toy_rows()
    soft = torch.rand(9, 4, generator=torch.Generator().manual_seed(5)).softmax(1)
    loss = RidgeRegression().compare(observed, rows, soft)
    assert float(loss) == pytest.approx(float(dense(*observed, rows, soft)), rel=2e-5)


def test_the_gradient_is_that_of_finite_differences() -> None:
    """Central differences of the double-precision formula; the ridge itself is held, as in FRePo."""
    observed, rows, targets = toy_rows(n=4, width=6)
    rows.requires_grad_()
    RidgeRegression().compare(observed, rows, targets).backward()
    ridge = 0.01 * float(rows.detach().square().sum(1).mean())
    expected = torch.zeros(4, 6, dtype=torch.float64)
    for i in range(4):
        for j in range(6):
            step = torch.zeros(4, 6, dtype=torch.float64)
            step[i, j] = 1e-6
            up, down = (dense(*observed, rows.detach().double() + s, targets, ridge) for s in (step, -step))
            expected[i, j] = (up - down) / 2e-6
    assert rows.grad is not None
    assert (rows.grad - expected).abs().max() < 1e-4 * expected.abs().max()


def test_targets_learn_too() -> None:
    """Quadratic in the targets: the gradient by double-precision autograd of the dense formula."""
    observed, rows, targets = toy_rows()
    single, double = targets.clone().requires_grad_(), targets.double().requires_grad_()
    RidgeRegression().compare(observed, rows, single).backward()
    dense(*observed, rows, double).backward()
    assert single.grad is not None
    assert double.grad is not None
    assert (single.grad - double.grad).abs().max() < 1e-4 * double.grad.abs().max()


def test_targets_are_centred_over_the_classes_at_hand() -> None:
    """Two names more that nobody has an image of change nothing."""
    observed, rows, targets = toy_rows()
    padded = FeatureRows(observed.rows, torch.nn.functional.pad(observed.targets, (1, 1)))
    loss = RidgeRegression().compare(observed, rows, targets)
    torch.testing.assert_close(
        RidgeRegression().compare(padded, rows, torch.nn.functional.pad(targets, (1, 1))), loss, rtol=1e-6, atol=0
    )


def test_one_class_teaches_nothing() -> None:
    observed, rows, _ = toy_rows()
    one = torch.eye(4)[torch.zeros(31, dtype=torch.int64)]
    rows.requires_grad_()
    loss = RidgeRegression().compare(FeatureRows(observed.rows, one), rows, torch.eye(4)[[0] * 9])
    loss.backward()
    assert rows.grad is not None
    assert loss.item() == 0
    assert not rows.grad.any()


def test_synthetic_rows_that_are_the_real_ones_interpolate() -> None:
    """Without a ridge, and with more features than rows, the prediction is exact."""
    observed, _, _ = toy_rows(width=64)
    loss = RidgeRegression(penalty=1e-7).compare(observed, observed.rows.float(), observed.targets)
    assert float(loss) < 1e-6


def test_a_ridge_beyond_measure_leaves_the_loss_of_the_centre() -> None:
    """All predictions are zero: half the squared norm of centred one-hot targets, (1 - 1/K) / 2."""
    observed, rows, targets = toy_rows()
    loss = RidgeRegression(penalty=1e9).compare(observed, rows, targets)
    assert float(loss) == pytest.approx(0.5 * (1 - 1 / 4), rel=1e-4)


def test_observing_keeps_half_precision_rows_of_each_class(step: MakeStep) -> None:
    draw, data, _ = step()
    observed = Own(data).observe(RidgeRegression(per_class=2), draw)
    assert observed.rows.dtype == torch.float16
    assert observed.targets.sum(0).tolist() == [2, 2, 0, 2, 1]


def loss_and_gradient(
    objective: FeatureObjective, draw: Draw, data: Data, synthetic: Synthetic
) -> tuple[Tensor, Tensor]:
    loss = objective.loss(draw, Own(data).observe(objective, draw), synthetic)
    return loss.detach(), torch.autograd.grad(loss, synthetic.images)[0]


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize(
    ("counts", "share"),
    [((2, 1, 3, 0, 1), 0.01), ((5, 5, 0, 5, 5), 1 / 16), ((10, 9, 0, 12, 9), 1.0), ((20, 20, 0, 0, 20), 1.0)],
)
def test_the_default_is_both_terms_computed_apart(
    step: MakeStep, counts: tuple[int, ...], share: float, weight: float
) -> None:
    """The means weigh less where a class has few images."""
    toy = step(synthetic=counts)
    means = loss_and_gradient(DistributionMatching(per_class=64, relative=True), *toy)
    ridge = loss_and_gradient(RidgeRegression(per_class=64), *toy)
    both = loss_and_gradient(means_and_ridge(ridge=weight), *toy)
    for a, b, c in zip(means, ridge, both, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(share * a + weight * b, c, rtol=1e-4, atol=1e-5 * float(c.abs().max()))


def test_a_single_class_is_held_to_its_mean_however_few_its_images(step: MakeStep) -> None:
    toy = step(real=(7, 0, 0, 0, 0), synthetic=(2, 0, 0, 0, 0))
    means = loss_and_gradient(DistributionMatching(per_class=64, relative=True), *toy)
    both = loss_and_gradient(means_and_ridge(), *toy)
    assert means[1].any()
    torch.testing.assert_close(both, means)


@pytest.mark.parametrize(
    ("real", "share"), [((7, 0, 0, 0, 0), 1.0), ((7, 3, 0, 0, 0), 0.4**4), ((7, 3, 2, 4, 5), 0.01)]
)
def test_soft_targets_do_not_hide_how_many_classes_are_at_hand(
    step: MakeStep, real: tuple[int, ...], share: float
) -> None:
    draw, data, synthetic = step(real=real, synthetic=(4, 4, 0, 0, 0), soft=True)
    factors = means_and_ridge(ridge=0.5).weigh(Own(data).observe(means_and_ridge(), draw), synthetic.targets)
    assert [float(factor) for factor in factors] == pytest.approx([share, 0.5])


def test_settings_of_the_default_reach_both_terms() -> None:
    objective = means_and_ridge(per_class=5, ridge=0.5, penalty=0.1)
    means, ridge = objective.terms
    assert objective.weights == (1.0, 0.5)
    assert objective.per_class == means.per_class == ridge.per_class == 5
    assert isinstance(ridge, RidgeRegression)
    assert ridge.penalty == 0.1
    assert isinstance(means, DistributionMatching)
    assert means.relative


@pytest.mark.parametrize("at_once", [1, 3, 6])
def test_two_passes_give_the_gradient_of_one_graph(step: MakeStep, at_once: int) -> None:
    draw, data, synthetic = step()
    for objective in (RidgeRegression(), means_and_ridge()):
        loss, gradient = loss_and_gradient(objective, draw, data, synthetic)
        synthetic.images.grad = None
        total = objective.backward(draw, Own(data).observe(objective, draw), synthetic, at_once)
        assert synthetic.images.grad is not None
        torch.testing.assert_close(total, loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(synthetic.images.grad, gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


def test_the_ridge_grows_with_the_number_of_images_beyond_a_hundred(step: MakeStep) -> None:
    """400 orthonormal rows: the kernel is the identity, so each weight is its target divided by 1 + 0.01 * 4**1.5."""
    rows, targets = torch.eye(400), torch.eye(2).repeat(200, 1)
    observed = FeatureRows(rows.half(), targets)
    loss = RidgeRegression(penalty=0.01).compare(observed, rows, targets)
    left = 1 - 1 / (1 + 0.01 * 8)  # of each centred target, whose square is 0.5
    torch.testing.assert_close(loss, torch.tensor(0.5 * left**2 / 2))

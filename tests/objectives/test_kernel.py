from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedcondense.condensing import condense, prepare
from fedcondense.condensing.holders import Own
from fedcondense.contract import Draw, Synthetic
from fedcondense.data.augment import OPERATIONS
from fedcondense.data.images import Data
from fedcondense.objectives.kernel import (
    FeatureRegression,
    KernelRegression,
    connected_kernel,
    margin,
    regression_error,
)
from fedcondense.randomness import stream
from fedcondense.sources import NoNetwork, OnlineTrained

Step = tuple[Draw, Data, Synthetic]
MakeStep = Callable[..., Step]


def one_value(a: Tensor, b: Tensor, depth: int, bias: float) -> Tensor:
    """The recursion over layers for a pair of images, written with angles."""

    def layer(aa: Tensor, ab: Tensor, bb: Tensor) -> tuple[Tensor, Tensor]:
        root = (aa * bb).sqrt()
        theta = torch.arccos((ab / root).clamp(-1, 1))
        expected = root / (2 * math.pi) * (theta.sin() + (math.pi - theta) * theta.cos())
        both_on = (math.pi - theta) / (2 * math.pi)
        return 2 * expected + bias**2, 2 * both_on

    aa, ab, bb = (2 * (x * y).mean() + bias**2 for x, y in ((a, a), (a, b), (b, b)))
    tangent = ab
    for _ in range(depth):
        (ab, slope), (aa, _), (bb, _) = layer(aa, ab, bb), layer(aa, aa, aa), layer(bb, bb, bb)
        tangent = ab + slope * tangent
    return tangent


def images(seed: int, number: int, width: int = 12) -> Tensor:
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestConnectedKernel:
    @pytest.mark.parametrize("depth", [0, 1, 2, 4])
    @pytest.mark.parametrize("bias", [0.0, 0.1, 1.0])
    def test_it_is_the_recursion_pair_by_pair(self, depth: int, bias: float) -> None:
        a, b = images(0, 4), images(1, 3)
        expected = torch.stack([torch.stack([one_value(x, y, depth, bias) for y in b]) for x in a])
        torch.testing.assert_close(connected_kernel(a, b, depth, bias), expected, rtol=1e-9, atol=0)

    def test_it_is_what_gradients_of_a_wide_network_multiply_to(self) -> None:
        """f = sqrt(2/n) v relu(h) + b c with h = sqrt(2/D) W x + b u, and the product of its gradients, by hand."""
        n, bias, x = 200_000, 0.3, images(0, 3, 5)
        generator = torch.Generator().manual_seed(1)
        w = torch.randn(n, 5, generator=generator, dtype=torch.float64)
        u, v = (torch.randn(n, 1, generator=generator, dtype=torch.float64) for _ in "uv")
        hidden = math.sqrt(2 / 5) * w @ x.T + bias * u
        on, active = (hidden > 0).double(), hidden.clamp_min(0)
        read = 2 / n * active.T @ active + bias**2
        first = 2 / n * (v * on).T @ (v * on) * (2 * x @ x.T / 5 + bias**2)
        torch.testing.assert_close(connected_kernel(x, x, 1, bias), read + first, rtol=0.02, atol=0.02)

    def test_known_values(self) -> None:
        """Without biases, of images at 0, 90 and 180 degrees: (depth + 1) s; s / pi; nothing."""
        a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        for depth in (1, 2, 3):
            assert float(connected_kernel(a, a, depth, 0.0)) == pytest.approx((depth + 1) * 1.0, rel=1e-5)
            assert float(connected_kernel(a, -a, 1, 0.0)) == pytest.approx(0, abs=1e-5)
        assert float(connected_kernel(a, a.roll(1, 1), 1, 0.0)) == pytest.approx(1 / math.pi)

    def test_it_is_a_kernel(self) -> None:
        x = images(0, 30)
        k = connected_kernel(x, x, 2, 0.1)
        torch.testing.assert_close(k, k.T)
        assert torch.linalg.eigvalsh(k).min() > 0

    def test_its_gradient_is_that_of_finite_differences_at_equal_images_too(self) -> None:
        """The diagonal meets an infinite slope of the angle, and a constant one: their product is finite."""
        x = images(0, 4, 6).requires_grad_()
        weights = images(3, 4, 4)

        def value(y: Tensor) -> Tensor:
            return (weights * connected_kernel(y, y, 2, 0.1)).sum()

        gradient = torch.autograd.grad(value(x), x)[0]
        assert gradient.isfinite().all()
        for i in range(4):
            for j in range(6):
                h = torch.zeros_like(x)
                h[i, j] = 1e-5
                slope = float((value(x.detach() + h) - value(x.detach() - h)) / 2e-5)
                assert float(gradient[i, j]) == pytest.approx(slope, rel=1e-4, abs=1e-5)

    def test_black_images_and_no_bias_are_finite(self) -> None:
        x = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
        k = connected_kernel(x, x, 2, 0.0)
        k.sum().backward()
        assert x.grad is not None
        assert k.abs().max() < 1e-100
        assert x.grad.isfinite().all()


def dense(inner: Tensor, cross: Tensor, targets: Tensor, real: Tensor, ridge: float) -> Tensor:
    """The formula as it is written, with an explicit inverse, one real image after another."""
    present = [c for c in range(real.shape[1]) if real[:, c].any()]
    centre = torch.zeros(real.shape[1], dtype=torch.float64)
    centre[present] = 1 / len(present)
    weights = torch.linalg.inv(inner + ridge * torch.eye(len(inner), dtype=torch.float64)) @ (targets - centre)
    total = torch.zeros((), dtype=torch.float64)
    for row, target in zip(cross, real, strict=True):
        total = total + ((row @ weights) - (target - centre)).pow(2).sum() / 2
    return total / len(real)


class TestRegressionError:
    def test_targets_learn_by_the_gradient_of_the_dense_formula(self) -> None:
        x, r = images(0, 5), images(1, 7)
        inner, cross, real = x @ x.T, r @ x.T, torch.eye(4).repeat(2, 1)[:7]
        single = torch.eye(4)[[0, 1, 2, 3, 0]].requires_grad_()
        double = single.detach().double().requires_grad_()
        regression_error(inner, cross, single, real, 0.01).backward()
        dense(inner, cross, double, real.double(), 0.01 * float(inner.diagonal().mean())).backward()
        assert single.grad is not None
        assert double.grad is not None
        torch.testing.assert_close(single.grad, double.grad.float(), rtol=1e-5, atol=1e-7)

    def test_a_ridge_beyond_measure_predicts_the_centre(self) -> None:
        """Half the squared norm of a centred one-hot target: (1 - 1/K) / 2."""
        x = images(0, 5)
        loss = regression_error(x @ x.T, x @ x.T, torch.eye(5), torch.eye(5), 1e12)
        assert float(loss) == pytest.approx(0.5 * (1 - 1 / 5), rel=1e-6)

    def test_one_class_teaches_nothing(self) -> None:
        x = images(0, 3).requires_grad_()
        one = torch.eye(3)[[1, 1, 1]]
        loss = regression_error(x @ x.T, x @ x.T, one, one, 0.01)
        loss.backward()
        assert loss.item() == 0
        assert x.grad is not None
        assert not x.grad.any()


class TestKernelRegression:
    @pytest.mark.parametrize("soft", [False, True])
    @pytest.mark.parametrize("operations", [(), OPERATIONS])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_loss_and_gradient_are_those_of_the_formula(
        self, step: MakeStep, seed: int, operations: tuple[str, ...], soft: bool
    ) -> None:
        draw, data, synthetic = step(seed, operations=operations, soft=soft)
        objective = KernelRegression(per_class=4, penalty=1e-3)
        loss = objective.loss(draw, Own(data).observe(objective, draw), synthetic)
        gradient = torch.autograd.grad(loss, synthetic.images)[0]

        batch = data.batch(data.per_class(4, stream(draw.seed, "real")))
        real = draw.augment(batch.images, batch.targets.argmax(1)).flatten(1).double()
        leaf = synthetic.images.detach().clone().requires_grad_()
        fake = draw.augment(leaf, synthetic.targets.argmax(1)).flatten(1).double()
        inner, cross = (
            torch.stack([torch.stack([one_value(a, b, 1, 0.1) for b in fake]) for a in x]) for x in (fake, real)
        )
        off = 1 - torch.eye(len(fake))  # arccos has no slope at one; there the value is a formula of the norm alone
        diagonal = 2 * (2 * fake.square().mean(1) + 0.1**2) + 0.1**2
        inner = torch.where(off.bool(), inner, torch.diag(diagonal))
        with torch.no_grad():
            ridge = 1e-3 * float(inner.diagonal().mean())
        expected = dense(inner, cross, synthetic.targets.double(), batch.targets.double(), ridge)
        torch.testing.assert_close(loss.detach(), expected.detach().float(), rtol=1e-5, atol=0)

        def value(shift: Tensor) -> float:
            moved = Synthetic(synthetic.images.detach() + shift, synthetic.targets)
            rows = draw.augment(moved.images, moved.targets.argmax(1)).flatten(1).double()
            inner, cross = connected_kernel(rows, rows, 1, 0.1), connected_kernel(real, rows, 1, 0.1)
            return float(dense(inner, cross, synthetic.targets.double(), batch.targets.double(), ridge))

        way = gradient / gradient.norm()
        slope = (value(1e-2 * way) - value(-1e-2 * way)) / 2e-2
        assert slope == pytest.approx(float(gradient.norm()), rel=1e-2)

    def test_the_real_images_themselves_interpolate(self, step: MakeStep) -> None:
        draw, data, _ = step(operations=())
        batch = data.batch()
        objective = KernelRegression(per_class=100)
        observed = Own(data).observe(objective, draw)
        assert float(objective.loss(draw, observed, Synthetic(batch.images, batch.targets))) < 1e-6

    def test_each_step_draws_other_real_images(self, step: MakeStep) -> None:
        draw, data, _ = step()
        objective = KernelRegression(per_class=2)
        first, second = (Own(data).observe(objective, draw._replace(seed=seed)) for seed in (1, 2))
        assert first.targets.sum(0).tolist() == [2, 2, 0, 2, 1]
        assert not torch.equal(first.rows, second.rows)

    def test_it_needs_no_network(self, step: MakeStep) -> None:
        loop = prepare(step()[1], 1, "kip", "pixels", network="convnet2-w32")
        assert isinstance(loop.source, NoNetwork)
        loop.step()


class TestFeatureRegression:
    @pytest.mark.parametrize("learn_labels", [False, True])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_loss_and_gradient_are_those_of_the_formula(self, step: MakeStep, seed: int, learn_labels: bool) -> None:
        draw, data, synthetic = step(seed, soft=True)
        objective = FeatureRegression(per_class=4, penalty=1e-3, learn_labels=learn_labels)
        synthetic = synthetic._replace(targets=synthetic.targets.requires_grad_())
        leaves = (synthetic.images, synthetic.targets)
        loss = objective.loss(draw, Own(data).observe(objective, draw), synthetic)
        gradients = torch.autograd.grad(loss, leaves)

        batch = data.batch(data.per_class(4, stream(draw.seed, "real")))
        with torch.no_grad():
            real = draw.network.features(draw.augment(batch.images, batch.targets.argmax(1))).double()
        fake = draw.network.features(draw.augment(synthetic.images, synthetic.targets.argmax(1))).double()
        ridge = 1e-3 * float(fake.detach().square().sum(1).mean())
        expected = dense(fake @ fake.T, real @ fake.T, synthetic.targets.double(), batch.targets.double(), ridge)
        if learn_labels:
            for row in synthetic.targets.double():
                falling = sorted(row, key=lambda t: float(t.detach()), reverse=True)
                expected = expected - torch.minimum(falling[0] - falling[1], torch.tensor(1 / 5)) / len(fake)
        torch.testing.assert_close(loss.detach(), expected.detach().float(), rtol=1e-5, atol=1e-7)
        for given_, wanted in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
            assert (given_ - wanted).abs().max() <= 2e-5 * wanted.abs().max()

    def test_two_passes_give_the_gradient_of_one_graph_in_images_and_labels(self, step: MakeStep) -> None:
        draw, data, synthetic = step()
        objective = FeatureRegression(learn_labels=True, penalty=1e-3)
        grads = []
        for at_once in (100, 2):
            images, targets = (t.detach().clone().requires_grad_() for t in synthetic[:2])
            leaves = Synthetic(images, targets)
            objective.backward(draw, Own(data).observe(objective, draw), leaves, at_once)
            grads.append((leaves.images.grad, leaves.targets.grad))
        for a, b in zip(*grads, strict=True):
            assert a is not None
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))

    def test_labels_are_learned_where_that_is_asked_for(self, step: MakeStep) -> None:
        _, data, _ = step()
        hard = condense(data, 2, FeatureRegression(), network="convnet2-w32", steps=3)
        soft = condense(data, 2, FeatureRegression(learn_labels=True), network="convnet2-w32", steps=3)
        assert hard.parts[0].targets.ndim == 1
        targets = soft.parts[0].targets
        assert (targets.dtype, targets.shape[1]) == (torch.float16, 5)
        assert not targets[:, 2].any()  # the data lack this class
        assert (targets.float().amax(1) < 1).any()

    def test_its_networks_are_trained_online(self, step: MakeStep) -> None:
        loop = prepare(step()[1], 1, "frepo", "pixels", network="convnet2-w32")
        assert isinstance(loop.source, OnlineTrained)
        for _ in range(3):
            loop.step()
        assert sum(loop.source.ages) == sum(100 * k // 10 for k in range(10)) + 2


def test_margins_by_hand() -> None:
    """Ahead by 0.1, by 0.4 (capped at a third), and not at all."""
    targets = torch.tensor([[0.4, 0.3, 0.3], [0.1, 0.2, 0.7], [0.5, 0.5, 0.0]])
    assert float(margin(targets)) == pytest.approx((0.1 + 1 / 3 + 0) / 3)
    assert float(margin(torch.ones(3, 1))) == 0


@given(st.integers(2, 6), st.integers(0, 2**31))
def test_a_margin_is_at_most_one_over_the_classes(classes: int, seed: int) -> None:
    targets = torch.randn(5, classes, generator=torch.Generator().manual_seed(seed)).softmax(1)
    assert 0 <= float(margin(targets)) <= 1 / classes + 1e-6


def test_other_settings_are_other_recipes() -> None:
    assert repr(replace(KernelRegression(), depth=3)) == (
        "KernelRegression(per_class=100, depth=3, bias=0.1, penalty=1e-06, siamese=False, learn_labels=False)"
    )

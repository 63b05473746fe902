from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedcondense.condensing import condense, prepare
from fedcondense.condensing.holders import Own
from fedcondense.contract import Draw, Synthetic
from fedcondense.data.augment import OPERATIONS
from fedcondense.data.images import Data
from fedcondense.objectives import OBJECTIVES
from fedcondense.objectives.gradient import (
    AbsoluteGradientMatching,
    GradientMatching,
    absolute_distance,
    gradient_distance,
    matched_weights,
    row_cosine_distance,
)
from fedcondense.randomness import stream
from fedcondense.sources import TrainedOnReal

Step = tuple[Draw, Data, Synthetic]
MakeStep = Callable[..., Step]


def authors_distance(real: Tensor, synthetic: Tensor) -> Tensor:
    """Reshape a weight to rows as the authors do; what has one dimension counts nothing."""
    if real.ndim == 4 or real.ndim == 3:
        real, synthetic = real.reshape(real.shape[0], -1), synthetic.reshape(real.shape[0], -1)
    elif real.ndim == 1:
        return torch.zeros(())
    total = torch.zeros(())
    for a, b in zip(real, synthetic, strict=True):
        total = total + 1 - (a * b).sum() / (torch.norm(a) * torch.norm(b) + 1e-6)
    return total


def authors(draw: Draw, data: Data, synthetic: Synthetic, per_class: int = 256) -> Tensor:
    """The authors' step: for each class the gradients in every parameter, real ones detached, all distances added."""
    network: nn.Module = draw.network
    network.requires_grad_(True)
    parameters = list(network.parameters())
    index = data.per_class(per_class, stream(draw.seed, "real"))
    total = torch.zeros(())
    for c in range(len(data.spec.classes)):
        real, fake = index[data.labels[index] == c], (synthetic.targets.argmax(1) == c).nonzero().flatten()
        if not len(real) or not len(fake):
            continue
        batch = data.batch(real)
        rows = torch.full((len(real),), c)
        real_loss = F.cross_entropy(network(draw.augment(batch.images, rows)), rows)
        real_gradients = [g.detach() for g in torch.autograd.grad(real_loss, parameters)]
        rows = torch.full((len(fake),), c)
        fake_loss = F.cross_entropy(network(draw.augment(synthetic.images[fake], rows)), rows)
        fake_gradients = torch.autograd.grad(fake_loss, parameters, create_graph=True)
        for a, b in zip(real_gradients, fake_gradients, strict=True):
            total = total + authors_distance(a, b)
    network.requires_grad_(False)
    return total


def ours(draw: Draw, data: Data, synthetic: Synthetic, objective: GradientMatching) -> tuple[Tensor, Tensor]:
    loss = objective.loss(draw, Own(data).observe(objective, draw), synthetic)
    return loss.detach(), torch.autograd.grad(loss, synthetic.images)[0]


@pytest.mark.parametrize("norm", ["instance", "layer", "none"])
@pytest.mark.parametrize("operations", [(), OPERATIONS])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_are_those_of_the_authors_step(
    step: MakeStep, seed: int, operations: tuple[str, ...], norm: str
) -> None:
    """DC without operations, DSA with all; absent classes on either side; three-dimensional weights with layer norm."""
    toy = step(seed, operations=operations, norm=norm)
    loss, gradient = ours(*toy, GradientMatching())
    expected = authors(*toy)
    expected_gradient = torch.autograd.grad(expected, toy[2].images)[0]
    assert loss > 0
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0)
    assert (gradient - expected_gradient).abs().max() <= 1e-5 * expected_gradient.abs().max()


def test_per_class_draws_so_many_real_images(step: MakeStep) -> None:
    toy = step()
    loss, _ = ours(*toy, GradientMatching(per_class=2))
    torch.testing.assert_close(loss, authors(*toy, per_class=2).detach(), rtol=1e-5, atol=0)
    assert not torch.allclose(loss, authors(*toy))


def test_only_weights_with_two_or_more_dimensions_are_compared(step: MakeStep) -> None:
    network = step()[0].network
    names = set(matched_weights(network))
    assert names == {"blocks.0.0.weight", "blocks.1.0.weight", "classifier.weight"}


def test_a_known_value() -> None:
    """Rows at 0, 90 and 180 degrees: 0, 1 and 2."""
    real = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]) * 100
    synthetic = torch.tensor([[7.0, 0.0], [0.0, 7.0], [-7.0, 0.0]])
    assert row_cosine_distance(real, synthetic).item() == pytest.approx(3.0, abs=1e-6)


SHAPES = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.integers(0, 2**31))
def test_the_distance_is_zero_for_equal_gradients_and_two_a_row_at_most(shape: tuple[int, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=generator) for _ in range(2))
    a, b = (10 * t / t.flatten(1).norm(dim=1).view(-1, *[1] * (t.ndim - 1)).clamp_min(1e-6) for t in (a, b))
    assert row_cosine_distance(a, a).item() == pytest.approx(0, abs=1e-4)
    assert -1e-4 <= row_cosine_distance(a, b).item() <= 2 * shape[0] + 1e-4
    assert row_cosine_distance(a, -a).item() == pytest.approx(2 * shape[0], rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.floats(0.5, 100))
def test_the_distance_does_not_see_the_scale(shape: tuple[int, ...], scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (10 + torch.randn(shape, generator=generator) for _ in range(2))
    torch.testing.assert_close(row_cosine_distance(a, scale * b), row_cosine_distance(a, b), rtol=1e-3, atol=1e-5)


def test_a_weight_without_a_gradient_counts_one_a_row_and_its_gradient_is_finite() -> None:
    """Dead units are normal."""
    a, b = torch.randn(4, 3), torch.zeros(4, 3, requires_grad=True)
    distance = row_cosine_distance(a, b)
    distance.backward()
    assert distance.item() == pytest.approx(4)
    assert b.grad is not None
    assert b.grad.isfinite().all()


def test_distances_add_up_over_weights() -> None:
    pairs = [(torch.randn(3, 2), torch.randn(3, 2)), (torch.randn(2, 4, 1), torch.randn(2, 4, 1))]
    expected = sum(row_cosine_distance(a, b) for a, b in pairs)
    given: Sequence[Sequence[Tensor]] = list(zip(*pairs, strict=True))
    torch.testing.assert_close(gradient_distance(*given), expected)


def test_the_real_images_themselves_are_at_distance_zero(step: MakeStep) -> None:
    draw, data, _ = step()
    batch = data.batch()
    loss, _ = ours(draw, data, Synthetic(batch.images.requires_grad_(), batch.targets), GradientMatching())
    rows = sum(w.shape[0] for w in matched_weights(draw.network).values())
    assert 0 <= loss < 1e-3 * rows * 4


def test_class_by_class_equals_one_joint_backward(step: MakeStep) -> None:
    draw, data, synthetic = step()
    objective = GradientMatching()
    observed = Own(data).observe(objective, draw)
    loss, gradient = ours(draw, data, synthetic, objective)
    total = objective.backward(draw, observed, synthetic, at_once=1000)
    assert synthetic.images.grad is not None
    torch.testing.assert_close(total, loss, rtol=1e-5, atol=0)
    assert (synthetic.images.grad - gradient).abs().max() <= 1e-5 * gradient.abs().max()


def test_the_graph_holds_one_class_at_a_time(step: MakeStep, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, data, synthetic = step()
    objective = GradientMatching()
    observed = Own(data).observe(objective, draw)
    seen: list[int] = []
    loss = GradientMatching.loss

    def spy(
        self: GradientMatching, draw: Draw, observed: dict[int, Sequence[Tensor | None]], group: Synthetic
    ) -> Tensor:
        seen.append(len(group.images))
        return loss(self, draw, observed, group)

    monkeypatch.setattr(GradientMatching, "loss", spy)
    objective.backward(draw, observed, synthetic, at_once=1000)
    assert seen == [2, 1, 3, 1]


def test_observed_gradients_carry_no_graph(step: MakeStep) -> None:
    draw, data, _ = step()
    observed = Own(data).observe(GradientMatching(), draw)
    assert sorted(observed) == [0, 1, 3, 4]
    assert not any(g.requires_grad for gradients in observed.values() for g in gradients)


@pytest.mark.parametrize(("name", "operations"), [("dc", ()), ("dsa", OPERATIONS)])
def test_dc_does_not_augment_and_dsa_does(step: MakeStep, name: str, operations: tuple[str, ...]) -> None:
    loop = prepare(step()[1], 1, name, "pixels", network="convnet2-w32")
    assert loop.source.operations == operations  # type: ignore[attr-defined]
    assert loop.objective is OBJECTIVES[name]


def test_the_published_recipe_runs(step: MakeStep) -> None:
    _, data, _ = step()
    recipe = replace(GradientMatching.published, steps=3)
    after, before = (
        condense(data, 2, "dsa", network="convnet2-w32", recipe=replace(recipe, steps=steps)) for steps in (3, 0)
    )
    assert after.record.start == "real"
    assert not torch.equal(after.pixels().images, before.pixels().images)


class TestAbsoluteGradientMatching:
    @staticmethod
    def naive(draw: Draw, data: Data, synthetic: Synthetic, per_class: int, power: int) -> Tensor:
        """Class by class, the gradients in the weights of convolutions alone, number by number."""
        network: nn.Module = draw.network
        names = ["blocks.0.0.weight", "blocks.1.0.weight"]
        parameters = [p.requires_grad_(True) for name, p in network.named_parameters() if name in names]
        index = data.per_class(per_class, stream(draw.seed, "real"))
        total = torch.zeros(())
        for c in range(len(data.spec.classes)):
            real, fake = index[data.labels[index] == c], synthetic.targets.argmax(1) == c
            if not len(real) or not fake.any():
                continue
            row = torch.tensor([c])
            losses = [
                F.cross_entropy(network(draw.augment(images, row.expand(len(images)))), row.expand(len(images)))
                for images in (data.batch(real).images, synthetic.images[fake])
            ]
            a = torch.autograd.grad(losses[0], parameters)
            b = torch.autograd.grad(losses[1], parameters, create_graph=True)
            for x, y in zip(a, b, strict=True):
                difference = x.detach().flatten() - y.flatten()
                total = total + (difference @ difference if power == 2 else difference.abs().sum())
        network.requires_grad_(False)
        return total

    @pytest.mark.parametrize("power", [1, 2])
    @pytest.mark.parametrize("per_class", [64, 2])
    @pytest.mark.parametrize(("seed", "operations"), [(0, ()), (1, OPERATIONS)])
    def test_loss_and_gradient_are_those_of_the_naive_step(
        self, step: MakeStep, seed: int, operations: tuple[str, ...], per_class: int, power: int
    ) -> None:
        toy = step(seed, operations=operations)
        loss, gradient = ours(*toy, AbsoluteGradientMatching(per_class=per_class, power=power))
        expected = self.naive(*toy, per_class, power)
        expected_gradient = torch.autograd.grad(expected, toy[2].images)[0]
        assert loss > 0
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0)
        assert (gradient - expected_gradient).abs().max() <= 1e-5 * expected_gradient.abs().max()

    def test_a_known_value(self) -> None:
        real, synthetic = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, -5.0]])
        assert float(absolute_distance(real, synthetic, 2)) == 4 + 9
        assert float(absolute_distance(real, synthetic, 1)) == 2 + 3

    def test_it_sees_the_scale_that_cosines_do_not(self) -> None:
        gradient = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        assert float(absolute_distance(gradient, 2 * gradient, 2)) == pytest.approx(float(gradient.square().sum()))
        assert float(absolute_distance(gradient, gradient, 2)) == 0

    def test_the_real_images_themselves_are_at_distance_zero(self, step: MakeStep) -> None:
        draw, data, synthetic = step()
        batch = data.batch()
        copies = Synthetic(batch.images.requires_grad_(), batch.targets)
        loss, _ = ours(draw, data, copies, AbsoluteGradientMatching())
        assert float(loss) < 1e-8 * float(ours(draw, data, synthetic, AbsoluteGradientMatching())[0])

    def test_the_weights_of_convolutions_are_compared_or_all_where_there_is_none(self, step: MakeStep) -> None:
        objective = AbsoluteGradientMatching()
        assert set(objective.weights(step(norm="layer")[0].network)) == {"blocks.0.0.weight", "blocks.1.0.weight"}
        assert set(objective.weights(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))) == {"1.weight"}

    def test_networks_are_trained_on_the_real_data(self, step: MakeStep) -> None:
        loop = prepare(step()[1], 1, "idc", "pixels", network="convnet2-w32")
        assert isinstance(loop.source, TrainedOnReal)
        assert loop.source.operations == OPERATIONS

    def test_the_published_recipe_runs(self, step: MakeStep) -> None:
        _, data, _ = step()
        recipe = replace(AbsoluteGradientMatching.published, steps=3)
        after, before = (
            condense(data, 2, "idc", network="convnet2-w32", recipe=replace(recipe, steps=steps)) for steps in (3, 0)
        )
        assert not torch.equal(after.pixels().images, before.pixels().images)

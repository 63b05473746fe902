from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcondense.condensing import condense, prepare
from fedcondense.contract import Draw, Synthetic
from fedcondense.data.augment import OPERATIONS
from fedcondense.data.images import Data
from fedcondense.errors import SettingError
from fedcondense.networks import ConvNet
from fedcondense.objectives.trajectory import TrajectoryMatching, descend, distance, flatten, leaves
from fedcondense.sources.trajectories import Trajectories

Step = tuple[Draw, Data, Synthetic]
MakeStep = Callable[..., Step]

SHORT = TrajectoryMatching(window=3, batch=4, rate=0.1)
METHODS = ("unroll", "recompute", "direct")


def tiny(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return ConvNet(shape, classes, width=4, depth=2)


def in_double(step: Step, *, soft: bool = False) -> tuple[Draw, Synthetic]:
    """Return the step in double precision, with images, step size and (where soft) targets as leaves."""
    draw, _, synthetic = step
    draw = draw._replace(network=copy.deepcopy(draw.network).double(), goal=draw.goal.double())
    images = synthetic.images.detach().double().requires_grad_()
    targets = synthetic.targets.double().requires_grad_(soft)
    rate = torch.tensor([math.log(SHORT.rate)], dtype=torch.float64, requires_grad=True)
    return draw, Synthetic(images, targets, {"log_rate": rate})


def gradients(objective: TrajectoryMatching, draw: Draw, synthetic: Synthetic) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of `backward` and what it adds to each leaf."""
    wanted = [t for t in (synthetic.images, synthetic.targets, synthetic.extras["log_rate"]) if t.requires_grad]
    for leaf in wanted:
        leaf.grad = None
    loss = objective.backward(draw, None, synthetic, at_once=512)
    found = [leaf.grad for leaf in wanted]
    assert all(gradient is not None for gradient in found)
    return loss, [gradient.clone() for gradient in found if gradient is not None]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("operations", [(), OPERATIONS])
def test_the_loss_is_where_torch_sgd_ends(step: MakeStep, method: str, operations: tuple[str, ...]) -> None:
    draw, _, synthetic = step(operations=operations, soft=True)
    objective = replace(SHORT, gradient=method)
    synthetic = Synthetic(synthetic.images, synthetic.targets, objective.extras())
    network: nn.Module = copy.deepcopy(draw.network).requires_grad_(True)
    start = flatten(dict(draw.network.named_parameters()))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for index, rows in objective.order(draw, synthetic):
        images = torch.cat(
            [draw.augment(synthetic.images[i].unsqueeze(0), r.view(1)) for i, r in zip(index, rows, strict=True)]
        )
        optimizer.zero_grad()
        F.cross_entropy(network(images.detach()), synthetic.targets[index]).backward()
        optimizer.step()
    end = nn.utils.parameters_to_vector(network.parameters()).detach()
    expected = float((end - draw.goal).square().sum() / (start - draw.goal).square().sum())
    assert float(objective.backward(draw, None, synthetic, 512)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["unroll", "recompute"])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_through_all_steps_are_those_of_finite_differences(step: MakeStep, seed: int, method: str) -> None:
    """Along random directions of the images, the targets and the step size."""
    draw, synthetic = in_double(step(seed, soft=True), soft=True)
    _, found = gradients(replace(SHORT, gradient=method), draw, synthetic)
    leaf = [synthetic.images, synthetic.targets, synthetic.extras["log_rate"]]
    generator = torch.Generator().manual_seed(seed)
    for k, gradient in enumerate(found):
        way = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            moved = [t.detach() + sign * 1e-5 * way if i == k else t.detach() for i, t in enumerate(leaf)]
            value = SHORT.loss(draw, None, Synthetic(moved[0], moved[1], {"log_rate": moved[2]}))
            values.append(float(value.detach()))
        assert float((gradient * way).sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("operations", [(), OPERATIONS])
def test_recomputing_is_unrolling(step: MakeStep, operations: tuple[str, ...]) -> None:
    draw, synthetic = in_double(step(operations=operations, soft=True), soft=True)
    loss, whole = gradients(replace(SHORT, window=6), draw, synthetic)
    again, found = gradients(replace(SHORT, window=6, gradient="recompute"), draw, synthetic)
    torch.testing.assert_close(again, loss.detach(), rtol=1e-12, atol=0)
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


def direct_part(draw: Draw, synthetic: Synthetic, objective: TrajectoryMatching) -> list[Tensor]:
    """TESLA by its formula: the gradients at detached points are summed, and the sum alone is differentiated."""
    log_rate, point = synthetic.extras["log_rate"], leaves(draw.network)
    total: dict[str, Tensor] = {name: torch.zeros_like(w) for name, w in point.items()}
    for batch in objective.batches(draw, synthetic):
        loss = F.cross_entropy(torch.func.functional_call(draw.network, point, (batch.images,)), batch.targets)
        found = torch.autograd.grad(loss, list(point.values()), create_graph=True)
        total = {name: total[name] + g for name, g in zip(point, found, strict=True)}
        point = leaves(
            {name: w - log_rate.exp().detach() * g for (name, w), g in zip(point.items(), found, strict=True)}
        )
    start = dict(draw.network.named_parameters())
    end = {name: start[name] - log_rate.exp() * total[name] for name in start}
    return list(torch.autograd.grad(distance(draw, end), (synthetic.images, log_rate)))


def test_the_direct_gradient_is_that_of_the_sum_of_gradients_at_detached_points(step: MakeStep) -> None:
    draw, synthetic = in_double(step(operations=()))
    _, found = gradients(replace(SHORT, gradient="direct"), draw, synthetic)
    for a, b in zip(found, direct_part(draw, synthetic, SHORT), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


def test_the_direct_gradient_is_exact_for_one_step_and_close_for_three_small_ones(step: MakeStep) -> None:
    draw, synthetic = in_double(step(operations=()))
    one = replace(SHORT, window=1)
    for a, b in zip(
        gradients(replace(one, gradient="direct"), draw, synthetic)[1], gradients(one, draw, synthetic)[1], strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)
    direct, whole = (gradients(replace(SHORT, gradient=m), draw, synthetic)[1][0] for m in ("direct", "unroll"))
    cosine = float(F.cosine_similarity(direct.flatten(), whole.flatten(), dim=0))
    assert 0.9 < cosine < 0.99999


@pytest.mark.parametrize("method", METHODS)
def test_no_distance_is_left_where_the_expert_is_imitated(step: MakeStep, method: str) -> None:
    """The goal is where the images lead: loss and gradient are zero, and not elsewhere."""
    draw, synthetic = in_double(step())
    objective = replace(SHORT, gradient=method)
    weights = leaves(draw.network)
    for batch in objective.batches(draw, synthetic):
        weights = leaves(
            descend(draw.network, weights, batch, synthetic.extras["log_rate"].detach(), create_graph=False)
        )
    there = draw._replace(goal=flatten(weights).detach())
    loss, found = gradients(objective, there, synthetic)
    assert float(loss) < 1e-20
    assert all(float(g.abs().max()) < 1e-9 for g in found)
    assert float(gradients(objective, draw, synthetic)[0]) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_the_network_is_left_as_it_is(step: MakeStep, method: str) -> None:
    draw, _, synthetic = step(norm="batch")
    before = copy.deepcopy(draw.network.state_dict())
    objective = replace(SHORT, gradient=method)
    objective.backward(draw, None, Synthetic(synthetic.images, synthetic.targets, objective.extras()), 512)
    assert all(torch.equal(value, before[name]) for name, value in draw.network.state_dict().items())
    assert all(p.grad is None for p in draw.network.parameters())


@pytest.mark.parametrize("settings", [{}, {"learn_labels": True}])
@pytest.mark.parametrize("method", METHODS)
def test_step_size_and_labels_are_learned_with_the_images(
    step: MakeStep, method: str, settings: dict[str, Any]
) -> None:
    loop = prepare(step()[1], 2, replace(SHORT, gradient=method, **settings), "pixels", network=tiny)
    assert isinstance(loop.source, Trajectories)
    before = loop.targets.detach().clone()
    for _ in range(2):
        loop.step()
    assert float(loop.extras["log_rate"].detach() - math.log(0.1)) != 0
    assert torch.equal(loop.targets.detach(), before) == (not settings)


def test_the_published_recipe_runs_and_its_step_sizes_differ(step: MakeStep) -> None:
    data = step()[1]
    source = TrajectoryMatching.published.source
    few = {"experts": 1, "interval": 2, "batch": 4, "latest": 1}
    recipe = replace(
        TrajectoryMatching.published,
        steps=2,
        source=lambda *told: source(*told, **few),
    )
    loop = prepare(data, 2, SHORT, "pixels", network=tiny, recipe=recipe)
    images, rate = (group["initial_lr"] for group in loop.optimizer.param_groups)
    assert images == pytest.approx(1000 * sum(s * s for s in data.spec.std) / 3)
    assert rate == 0.1
    after = condense(data, 2, SHORT, network=tiny, recipe=recipe)
    before = condense(data, 2, SHORT, network=tiny, recipe=replace(recipe, steps=0))
    assert not torch.equal(after.pixels().images, before.pixels().images)


def test_an_unknown_way_to_find_the_gradient_is_refused() -> None:
    with pytest.raises(SettingError, match="gradient 'exact'; needed: one of unroll, recompute, direct"):
        TrajectoryMatching(gradient="exact")

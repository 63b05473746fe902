from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedcondense.condensing import condense, prepare
from fedcondense.condensing.holders import Own
from fedcondense.contract import Batch, Draw, Synthetic
from fedcondense.data.augment import OPERATIONS, Augmentation
from fedcondense.data.images import Data
from fedcondense.networks import ConvNet, build
from fedcondense.objectives.unrolled import UnrolledTraining, cross_entropy
from fedcondense.randomness import batches, stream
from fedcondense.sources import TrainedOnSynthetic

Step = tuple[Draw, Data, Synthetic]
MakeStep = Callable[..., Step]

SHORT = UnrolledTraining(per_class=4, window=3, batch=4, rate=0.1)


def with_rates(synthetic: Synthetic, objective: UnrolledTraining) -> Synthetic:
    extras = {name: value.requires_grad_() for name, value in objective.extras().items()}
    return Synthetic(synthetic.images, synthetic.targets, extras)


def trained_by_hand(draw: Draw, data: Data, synthetic: Synthetic, objective: UnrolledTraining) -> float:
    """Train a copy of the network with torch's own SGD, a step size a step, and test it on the real batch."""
    network: nn.Module = copy.deepcopy(draw.network).requires_grad_(True)
    order = batches(len(synthetic.images), objective.batch, objective.window, stream(draw.seed, "batches"))
    for index, rate in zip(order, synthetic.extras["log_rates"].exp().tolist(), strict=True):
        images = draw.augment(synthetic.images[index], synthetic.targets[index].argmax(1)).detach()
        optimizer = torch.optim.SGD(network.parameters(), lr=rate)
        optimizer.zero_grad()
        F.cross_entropy(network(images), synthetic.targets[index]).backward()
        optimizer.step()
    batch = data.batch(data.per_class(objective.per_class, stream(draw.seed, "real")))
    with torch.no_grad():
        logits = network(draw.augment(batch.images, batch.targets.argmax(1)))
    return float(F.cross_entropy(logits, batch.targets))


@pytest.mark.parametrize("operations", [(), OPERATIONS])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_is_that_of_a_network_trained_by_sgd(step: MakeStep, seed: int, operations: tuple[str, ...]) -> None:
    draw, data, synthetic = step(seed, operations=operations, soft=True)
    synthetic = with_rates(synthetic, SHORT)
    loss = SHORT.loss(draw, Own(data).observe(SHORT, draw), synthetic)
    assert float(loss.detach()) == pytest.approx(trained_by_hand(draw, data, synthetic, SHORT), rel=1e-5)


def linear_step(rate: float) -> tuple[Draw, Tensor, Synthetic]:
    """A linear network of two pixels and two classes in double precision, for gradients that are known."""
    linear = nn.Linear(2, 2, bias=False).double().requires_grad_(False)
    linear.weight.copy_(torch.tensor([[0.3, -0.2], [0.1, 0.4]]))
    network = nn.Sequential(nn.Flatten(), linear)
    draw = Draw(network, Augmentation.draw((), 2, torch.Generator()), 3)
    images = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64).view(2, 1, 1, 2).requires_grad_()
    rates = {"log_rates": torch.tensor([math.log(rate)], dtype=torch.float64, requires_grad=True)}
    return draw, images, Synthetic(images, torch.eye(2, dtype=torch.float64), rates)


def test_one_step_of_a_linear_network_by_hand() -> None:
    """W' = W - a (p - y) x / N, written out; its gradients in images and rate by double-precision autograd of that."""
    draw, images, synthetic = linear_step(0.5)
    real = torch.tensor([[1.0, 1.0], [-1.0, 0.5]], dtype=torch.float64)
    observed = Batch(real.view(2, 1, 1, 2), torch.eye(2, dtype=torch.float64))
    objective = UnrolledTraining(window=1, batch=2, siamese=False)
    loss = objective.loss(draw, observed, synthetic)
    given_images, given_rate = torch.autograd.grad(loss, (images, synthetic.extras["log_rates"]))

    x, a = images.detach().flatten(1).requires_grad_(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    w = draw.network[1].weight
    p = (x @ w.T).exp() / (x @ w.T).exp().sum(1, keepdim=True)
    moved = w - a * (p - torch.eye(2)).T @ x / 2
    q = (real @ moved.T).log_softmax(1)
    expected = -(q[0, 0] + q[1, 1]) / 2
    wanted_images, wanted_rate = torch.autograd.grad(expected, (x, a))
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    torch.testing.assert_close(given_images.flatten(1), wanted_images, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(given_rate[0], wanted_rate * 0.5, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_through_all_steps_are_those_of_finite_differences(step: MakeStep, seed: int) -> None:
    """In double precision, along random directions of the images and of the step sizes."""
    draw, data, synthetic = step(seed, operations=())
    observed = Own(data).observe(SHORT, draw)
    observed = type(observed)(observed.images.double(), observed.targets.double())
    network = copy.deepcopy(draw.network).double()
    draw = draw._replace(network=network)
    images = synthetic.images.detach().double().requires_grad_()
    rates = SHORT.extras()["log_rates"].double().requires_grad_()

    def value(images: Tensor, rates: Tensor) -> Tensor:
        return SHORT.loss(draw, observed, Synthetic(images, synthetic.targets.double(), {"log_rates": rates}))

    gradients = torch.autograd.grad(value(images, rates), (images, rates))
    generator = torch.Generator().manual_seed(seed)
    ways = [torch.randn(g.shape, generator=generator, dtype=torch.float64) for g in gradients]
    for k in range(2):
        h = [1e-5 * w if i == k else torch.zeros_like(w) for i, w in enumerate(ways)]
        up, down = (value(images.detach() + s * h[0], rates.detach() + s * h[1]).detach() for s in (1, -1))
        slope = float((up - down) / 2e-5)
        assert float((gradients[k] * ways[k]).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-7)


def test_no_step_size_is_no_training(step: MakeStep) -> None:
    """The loss of the network as it was handed out, and images that change nothing."""
    draw, data, synthetic = step()
    objective = replace(SHORT, rate=1e-30)
    synthetic = with_rates(synthetic, objective)
    observed = Own(data).observe(objective, draw)
    loss = objective.loss(draw, observed, synthetic)
    with torch.no_grad():
        untrained = F.cross_entropy(draw.network(observed.images), observed.targets)
    torch.testing.assert_close(loss.detach(), untrained)
    assert not torch.autograd.grad(loss, synthetic.images)[0].abs().max() > 1e-20


def test_training_on_the_real_images_lowers_their_loss_and_on_wrong_labels_raises_it(step: MakeStep) -> None:
    draw, data, _ = step(operations=())
    batch = data.batch()
    objective = UnrolledTraining(per_class=100, window=5, batch=100, rate=0.05)
    observed = Own(data).observe(objective, draw)
    before = cross_entropy(draw.network, dict(draw.network.named_parameters()), *observed)
    right = objective.loss(draw, observed, Synthetic(batch.images, batch.targets, objective.extras()))
    wrong = objective.loss(draw, observed, Synthetic(batch.images, batch.targets.roll(1, 1), objective.extras()))
    assert right < before < wrong


def test_the_network_is_left_as_it_is_batch_norm_included(step: MakeStep) -> None:
    draw, data, synthetic = step()
    network = build(partial(ConvNet, width=4, depth=2, norm="batch"), (3, 8, 8), 5, 0).requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    draw, synthetic = draw._replace(network=network), with_rates(synthetic, SHORT)
    SHORT.loss(draw, Own(data).observe(SHORT, draw), synthetic).backward()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_step_sizes_are_learned_with_the_images(step: MakeStep) -> None:
    loop = prepare(step()[1], 2, SHORT, "pixels", network="convnet2-w32")
    assert isinstance(loop.source, TrainedOnSynthetic)
    for _ in range(3):
        loop.step()
    assert loop.extras["log_rates"].shape == (3,)
    assert (loop.extras["log_rates"].detach() - math.log(0.1)).abs().min() > 0
    assert loop.norm is not None


@given(st.integers(1, 20), st.integers(1, 25), st.integers(1, 9))
def test_batches_take_every_image_as_often_as_any_other(number: int, size: int, steps: int) -> None:
    """But for one, and no image twice in a batch of a single pass."""
    drawn = batches(number, size, steps, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in drawn] == [min(size, number)] * steps
    counts = torch.bincount(torch.cat(drawn), minlength=number)
    assert counts.max() - counts.min() <= 1


def test_the_published_recipe_runs(step: MakeStep) -> None:
    _, data, _ = step()
    recipe = replace(UnrolledTraining.published, steps=2)
    after = condense(data, 2, SHORT, network="convnet2-w32", recipe=recipe)
    before = condense(data, 2, SHORT, network="convnet2-w32", recipe=replace(recipe, steps=0))
    assert not torch.equal(after.pixels().images, before.pixels().images)

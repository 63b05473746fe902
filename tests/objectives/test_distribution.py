from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedcondense.condensing import condense
from fedcondense.condensing.holders import Own
from fedcondense.contract import Draw, Objective, Synthetic
from fedcondense.data.augment import OPERATIONS, Augmentation
from fedcondense.data.images import Data
from fedcondense.objectives.distribution import DistributionMatching, class_sums
from fedcondense.randomness import stream

Step = tuple[Draw, Data, Synthetic]
MakeStep = Callable[..., Step]


def naive(draw: Draw, data: Data, synthetic: Synthetic, per_class: int | None = 256) -> Tensor:
    """The published loop: one class after another, one image after another, each class with its own augmentation."""
    index = data.per_class(per_class, stream(draw.seed, "real"))
    total = torch.zeros(())
    for c in range(synthetic.targets.shape[1]):
        real = index[data.labels[index] == c]
        mass = sum(float(row[c]) for row in synthetic.targets)
        if not len(real) or not mass:
            continue
        with torch.no_grad():
            features = [
                draw.network.features(draw.augment(data.batch(i.view(1)).images, torch.tensor([c]))) for i in real
            ]
            real_mean = torch.cat(features).sum(0) / len(features)
        synthetic_mean = torch.zeros_like(real_mean)
        for image, row in zip(synthetic.images, synthetic.targets, strict=True):
            augmented = draw.augment(image[None], row.argmax().view(1))  # a soft label is augmented as its largest
            synthetic_mean = synthetic_mean + float(row[c]) * draw.network.features(augmented)[0] / mass
        total = total + (real_mean - synthetic_mean).pow(2).sum()
    return total


def loss_and_gradient(loss: Tensor, synthetic: Synthetic) -> tuple[Tensor, Tensor]:
    return loss.detach(), torch.autograd.grad(loss, synthetic.images)[0]


def fast(objective: Objective, draw: Draw, data: Data, synthetic: Synthetic) -> tuple[Tensor, Tensor]:
    return loss_and_gradient(objective.loss(draw, Own(data).observe(objective, draw), synthetic), synthetic)


def assert_close(given: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], relative: float = 1e-5) -> None:
    for a, b in zip(given, expected, strict=True):
        assert (a - b).abs().max() <= relative * b.abs().max()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("operations", [(), OPERATIONS])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_batched_means_equal_the_naive_loop(step: MakeStep, seed: int, operations: tuple[str, ...], soft: bool) -> None:
    """The loop is the definition: absent classes on either side, ragged sizes, hard and soft labels."""
    toy = step(seed, soft=soft, operations=operations)
    given, expected = fast(DistributionMatching(), *toy), loss_and_gradient(naive(*toy), toy[2])
    assert expected[0] > 0
    assert_close(given, expected)


def test_per_class_draws_so_many_real_images(step: MakeStep) -> None:
    toy = step()
    given, expected = fast(DistributionMatching(per_class=2), *toy), loss_and_gradient(naive(*toy, per_class=2), toy[2])
    assert_close(given, expected)
    assert not torch.allclose(expected[0], naive(*toy))


def test_it_is_linear_in_the_mean(step: MakeStep) -> None:
    """Duplicating every image changes nothing, but halves what each copy feels."""
    draw, data, once = step()
    twice = Synthetic(torch.cat([once.images, once.images]).detach().requires_grad_(), once.targets.repeat(2, 1))
    loss, gradient = fast(DistributionMatching(), draw, data, once)
    assert_close(fast(DistributionMatching(), draw, data, twice), (loss, torch.cat([gradient, gradient]) / 2))


def test_real_images_themselves_are_at_distance_zero(step: MakeStep) -> None:
    draw, data, _ = step()
    copies = Synthetic(data.batch().images.requires_grad_(), data.batch().targets)
    loss, gradient = fast(DistributionMatching(), draw, data, copies)
    assert loss < 1e-8
    assert gradient.abs().max() < 1e-4


def test_a_known_value(step: MakeStep) -> None:
    """Class means (1, 0) and (0, 2) against (0, 0) and (0, 3): squared distances 1 and 1."""
    real = class_sums(torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0], [1, 0], [0, 1]]))
    rows = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    assert DistributionMatching().compare(real, rows, torch.eye(2)) == pytest.approx(2.0)


def test_a_class_that_is_absent_on_one_side_adds_nothing(step: MakeStep) -> None:
    draw, data, synthetic = step()  # the real data lack class 2
    _, gradient = fast(DistributionMatching(), draw, data, synthetic)
    by_class = [float(gradient[synthetic.targets.argmax(1) == c].abs().sum()) for c in (0, 1, 2, 4)]
    assert by_class[2] == 0
    assert min(by_class[0], by_class[1], by_class[3]) > 0


def test_the_relative_form_divides_by_the_spread_of_the_real_means(step: MakeStep) -> None:
    """By hand: the sum over present classes of the squared distance of a class mean from the mean of them."""
    draw, data, synthetic = step()
    observed = Own(data).observe(DistributionMatching(), draw)
    means = [observed.sums[c] / observed.counts[c] for c in (0, 1, 3, 4)]
    centre = sum(means, torch.zeros(())) / 4
    spread = sum(float((mean - centre).pow(2).sum()) for mean in means)
    loss, gradient = fast(DistributionMatching(), draw, data, synthetic)
    assert_close(fast(DistributionMatching(relative=True), draw, data, synthetic), (loss / spread, gradient / spread))


def test_the_relative_form_of_one_class_divides_by_the_size_of_its_mean(step: MakeStep) -> None:
    draw, data, synthetic = step(real=(9, 0, 0, 0, 0))
    observed = Own(data).observe(DistributionMatching(), draw)
    size = (observed.sums[0] / 9).pow(2).sum()
    loss, gradient = fast(DistributionMatching(), draw, data, synthetic)
    assert_close(fast(DistributionMatching(relative=True), draw, data, synthetic), (loss / size, gradient / size))


def test_the_relative_form_does_not_see_the_scale_of_the_features() -> None:
    rows = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    targets = torch.eye(3).repeat(2, 1)
    objective = DistributionMatching(relative=True)
    small, large = (objective.compare(class_sums(s * rows.roll(1, 1), targets), s * rows, targets) for s in (1.0, 50.0))
    torch.testing.assert_close(small, large)


def test_groups_of_classes_equal_one_graph(step: MakeStep) -> None:
    draw, data, synthetic = step()
    objective = DistributionMatching(relative=True)
    loss, gradient = fast(objective, draw, data, synthetic)
    total = objective.backward(draw, Own(data).observe(objective, draw), synthetic, at_once=2)
    assert synthetic.images.grad is not None
    assert_close((total, synthetic.images.grad), (loss, gradient))


def test_logits_can_be_matched(step: MakeStep) -> None:
    toy = step()
    observed = Own(toy[1]).observe(DistributionMatching(layer="logits"), toy[0])
    assert observed.sums.shape == (5, 5)
    assert fast(DistributionMatching(layer="logits"), *toy)[1].abs().sum() > 0


def test_class_sums_by_hand() -> None:
    rows, targets = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0]])
    sums = class_sums(rows, targets)
    torch.testing.assert_close(sums.sums, torch.tensor([[1.75, 3.0], [2.25, 3.0], [0.0, 0.0]]))
    torch.testing.assert_close(sums.counts, torch.tensor([1.25, 0.75, 0.0]))
    torch.testing.assert_close(sums.means, torch.tensor([[1.4, 2.4], [3.0, 4.0], [0.0, 0.0]]))


def test_the_augmentation_is_one_a_class_on_both_sides(step: MakeStep) -> None:
    """Mirrored on both sides or on neither: a synthetic copy of the data is at distance zero only if they agree."""
    draw, data, _ = step(operations=("flip",))
    copies = Synthetic(data.batch().images.requires_grad_(), data.batch().targets)
    for coin in (0.0, 0.9):
        flipped = draw._replace(augment=Augmentation(torch.full((5,), 3), torch.full((5, 3), coin)))
        observed = Own(data).observe(DistributionMatching(), flipped)
        assert DistributionMatching().loss(flipped, observed, copies) < 1e-8


def test_the_published_recipe_runs(step: MakeStep) -> None:
    _, data, _ = step()
    recipe = replace(DistributionMatching.published, steps=2)
    objective = DistributionMatching()
    synthetic = condense(data, 2, objective, network="convnet2-w32", recipe=recipe)
    before = condense(data, 2, objective, network="convnet2-w32", recipe=replace(recipe, steps=0))
    assert (synthetic.record.start, synthetic.record.steps) == ("real", 2)
    assert not torch.equal(synthetic.pixels().images, before.pixels().images)

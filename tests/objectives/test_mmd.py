from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedcondense.condensing.holders import Own
from fedcondense.contract import Draw, Synthetic
from fedcondense.data.augment import OPERATIONS
from fedcondense.data.images import Data
from fedcondense.objectives.features import FeatureObjective
from fedcondense.objectives.mmd import (
    KernelMeans,
    KernelRows,
    class_shares,
    gaussian_mixture,
    squared_spread,
)
from fedcondense.randomness import stream

Step = tuple[Draw, Data, Synthetic]
MakeStep = Callable[..., Step]

WIDTHS = KernelMeans().bandwidths


def naive(draw: Draw, data: Data, synthetic: Synthetic, per_class: int | None = 64) -> Tensor:
    """The formula pair by pair in double precision: weighted by the labels, each row with itself, too."""
    index = data.per_class(per_class, stream(draw.seed, "real"))
    batch = data.batch(index)
    with torch.no_grad():
        real = draw.network.features(draw.augment(batch.images, batch.targets.argmax(1))).half().double()
    fake = draw.network.features(draw.augment(synthetic.images, synthetic.targets.argmax(1))).double()
    spread = sum(float((a - b).pow(2).sum()) for a in real for b in real) / len(real) ** 2

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        distance = (a - b).pow(2).sum()
        return sum((torch.exp(-distance / (w * spread)) for w in WIDTHS), torch.zeros(())) / len(WIDTHS)

    total = torch.zeros((), dtype=torch.float64)
    for c in range(synthetic.targets.shape[1]):
        r = [(row, 1.0) for row, label in zip(real, batch.targets.argmax(1).tolist(), strict=True) if label == c]
        s = [(row, float(t[c])) for row, t in zip(fake, synthetic.targets, strict=True)]
        mass = sum(w for _, w in s)
        if not r or not mass:
            continue
        rr = sum(kernel(a, b) for a, _ in r for b, _ in r) / len(r) ** 2
        ss = sum((v * w * kernel(a, b) for a, v in s for b, w in s), torch.zeros(())) / mass**2
        rs = sum((w * kernel(a, b) for a, _ in r for b, w in s), torch.zeros(())) / (len(r) * mass)
        total = total + rr + ss - 2 * rs
    return total


def fast(objective: FeatureObjective, draw: Draw, data: Data, synthetic: Synthetic) -> tuple[Tensor, Tensor]:
    loss = objective.loss(draw, Own(data).observe(objective, draw), synthetic)
    return loss.detach(), torch.autograd.grad(loss, synthetic.images)[0]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("operations", [(), OPERATIONS])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_equal_the_loop_over_pairs(
    step: MakeStep, seed: int, operations: tuple[str, ...], soft: bool
) -> None:
    """Absent classes on either side, ragged sizes, hard and soft labels."""
    toy = step(seed, operations=operations, soft=soft)
    loss, gradient = fast(KernelMeans(), *toy)
    expected = naive(*toy)
    expected_gradient = torch.autograd.grad(expected, toy[2].images)[0]
    assert loss > 0
    torch.testing.assert_close(loss, expected.detach().float(), rtol=1e-5, atol=0)
    assert (gradient - expected_gradient).abs().max() <= 1e-5 * expected_gradient.abs().max()


def test_per_class_draws_so_many_real_images(step: MakeStep) -> None:
    toy = step()
    loss, _ = fast(KernelMeans(per_class=2), *toy)
    torch.testing.assert_close(loss, naive(*toy, per_class=2).detach().float(), rtol=1e-5, atol=0)
    assert not torch.allclose(loss.double(), naive(*toy))


def kept(objective: KernelMeans, rows: torch.Tensor, targets: torch.Tensor) -> KernelRows:
    return objective.merge([objective.summarise(rows, targets)])


def test_a_known_value() -> None:
    """Real rows at 0 and 2, so d = 2; a synthetic row at 1, one bandwidth of d: (1 + 1/e**2)/2 + 1 - 2/sqrt(e)."""
    objective = KernelMeans(bandwidths=(1.0,))
    observed = kept(objective, torch.tensor([[0.0], [2.0]]), torch.ones(2, 1))
    assert float(observed.spread) == 2
    loss = objective.compare(observed, torch.tensor([[1.0]]), torch.ones(1, 1))
    assert float(loss) == pytest.approx((1 + math.exp(-2)) / 2 + 1 - 2 * math.exp(-0.5), rel=1e-5)


def test_the_real_images_themselves_are_at_distance_zero(step: MakeStep) -> None:
    draw, data, _ = step()
    copies = Synthetic(data.batch().images.requires_grad_(), data.batch().targets)
    loss, gradient = fast(KernelMeans(), draw, data, copies)
    assert abs(float(loss)) < 1e-4  # what is kept is rounded to half precision
    assert gradient.abs().max() < 1e-3 * fast(KernelMeans(), *step())[1].abs().max()


def test_rows_far_from_all_real_ones_are_at_the_largest_distance() -> None:
    """Only a row's meeting with itself is left: of m real and n synthetic rows far apart, 1/m + 1/n."""
    objective = KernelMeans(bandwidths=(1e-4,))
    observed = kept(objective, torch.eye(4), torch.ones(4, 1))
    loss = objective.compare(observed, 9 + 5 * torch.eye(4)[:2], torch.ones(2, 1))
    assert float(loss) == pytest.approx(1 / 4 + 1 / 2)


def test_it_tells_distributions_of_one_mean_apart_and_spreads_what_is_alike() -> None:
    """Real rows at -1 and 1, both synthetic ones near 0: the mean is right, yet each is pushed out."""
    observed = kept(KernelMeans(), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
    rows = torch.tensor([[-0.1], [0.1]], requires_grad=True)
    loss = KernelMeans().compare(observed, rows, torch.ones(2, 1))
    loss.backward()
    assert rows.grad is not None
    assert float(loss.detach()) > 0.01
    assert float(rows.grad[0]) > 0 > float(rows.grad[1])  # down the gradient is outwards


def test_it_does_not_see_the_scale_of_the_features() -> None:
    generator = torch.Generator().manual_seed(0)
    real, rows = torch.randn(8, 5, generator=generator).half().float(), torch.randn(4, 5, generator=generator)
    targets = torch.eye(2).repeat(4, 1)
    small, large = (
        KernelMeans().compare(kept(KernelMeans(), s * real, targets), s * rows, targets[:4]) for s in (1.0, 16.0)
    )
    torch.testing.assert_close(small, large)


def test_duplicating_every_image_changes_nothing(step: MakeStep) -> None:
    draw, data, once = step()
    twice = Synthetic(torch.cat([once.images, once.images]).detach().requires_grad_(), once.targets.repeat(2, 1))
    torch.testing.assert_close(
        fast(KernelMeans(), draw, data, twice)[0], fast(KernelMeans(), draw, data, once)[0], rtol=1e-5, atol=0
    )


def test_a_pool_keeps_half_precision_rows_of_each_class(step: MakeStep) -> None:
    draw, data, _ = step()
    observed = Own(data).observe(KernelMeans(per_class=2), draw)
    assert observed.rows.dtype == torch.float16
    assert observed.targets.sum(0).tolist() == [2, 2, 0, 2, 1]


def test_the_mixture_is_one_on_the_diagonal_and_symmetric() -> None:
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    kernel = gaussian_mixture(rows, rows, [torch.tensor(0.5), torch.tensor(3.0)])
    torch.testing.assert_close(kernel.diagonal(), torch.ones(6))
    torch.testing.assert_close(kernel, kernel.T)
    assert torch.linalg.eigvalsh(kernel.double()).min() > 0


def test_the_spread_of_one_row_is_its_square() -> None:
    assert float(squared_spread(torch.tensor([[3.0, 4.0]]))) == 25
    assert float(squared_spread(torch.tensor([[0.0], [1.0], [1.0], [0.0]]))) == 0.5
    assert float(squared_spread(torch.zeros(2, 3))) > 0


def test_shares_sum_to_one_for_each_class_at_hand() -> None:
    shares = class_shares(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]))
    torch.testing.assert_close(shares, torch.tensor([[2 / 3, 0.0, 0.0], [1 / 3, 1.0, 0.0]]))


def test_what_was_kept_of_parts_merges_to_what_is_kept_of_all() -> None:
    """Of parts that were merged themselves, as those of several holders are."""
    generator = torch.Generator().manual_seed(0)
    rows, targets = torch.randn(9, 4, generator=generator), torch.eye(3).repeat(3, 1)
    parts = [kept(KernelMeans(), rows[k : k + 3], targets[k : k + 3]) for k in (0, 3, 6)]
    for a, b in zip(KernelMeans().merge(parts), kept(KernelMeans(), rows, targets), strict=True):
        assert torch.equal(a, b)

"""The default objective beside images that stay: its formula is transcribed here, class by class."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedcondense.condensing import condense
from fedcondense.condensing.holders import Own
from fedcondense.contract import Draw, Synthetic
from fedcondense.data.images import Data
from fedcondense.objectives.features import FeatureObjective
from fedcondense.objectives.mmd_ridge import KernelMeansAndRidge
from fedcondense.objectives.residual import Residual

Step = tuple[Draw, Data, Synthetic]
MakeStep = Callable[..., Step]

FIXED = (0, 2, 1, 0, 3, 2)  # the classes of the toy data, and one that they do not have
SHARE = torch.tensor([0.5, 0.2, 1.0, 0.9, 0.1])


def fixed(counts: tuple[int, ...] = FIXED, seed: int = 9) -> tuple[Tensor, Tensor]:
    """Return images that stay, and their targets over the toy classes and as many others as `counts` says."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return torch.randn(len(labels), 3, 8, 8, generator=generator), F.one_hot(labels, len(counts)).float()


def both(objective: FeatureObjective, draw: Draw, data: Data, synthetic: Synthetic) -> tuple[Tensor, Tensor]:
    leaf = synthetic.images.detach().clone().requires_grad_()
    loss = objective.loss(draw, Own(data).observe(objective, draw), Synthetic(leaf, synthetic.targets))
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def naive(draw: Draw, data: Data, synthetic: Synthetic, images: Tensor, targets: Tensor) -> Tensor:
    """The docstring's formula in double precision, for hard labels, all records and up to 100 images."""
    batch = data.batch(data.per_class(None, torch.Generator()))
    of_real, of_fixed, of_new = (t.argmax(1) for t in (batch.targets, targets, synthetic.targets))

    def features(given: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = draw.network.features(draw.augment(given, labels % 5))
        return found

    r = features(batch.images, of_real).detach().half().double()
    u = features(images, of_fixed).detach().half().double()
    g = features(synthetic.images, of_new).double()
    spread = torch.cdist(r, r).square().mean()

    def k(a: Tensor, b: Tensor) -> Tensor:
        squared = (a.unsqueeze(1) - b).square().sum(2)
        return torch.stack([torch.exp(-squared / (w * spread)) for w in (0.25, 0.5, 1, 2, 4)]).mean(0)

    total = torch.zeros((), dtype=torch.float64)
    for c in set(of_real.tolist()) & set(of_new.tolist()):
        pieces = [r[of_real == c], u[of_fixed == c], g[of_new == c]]
        s, w = float(SHARE[c]), len(pieces[2]) / (len(pieces[1]) + len(pieces[2]))
        signs = [s, w - s, -w] if len(pieces[1]) else [1.0, 0.0, -1.0]
        rows = torch.cat(pieces)
        weight = torch.cat(
            [torch.full((len(p),), sign / max(1, len(p))) for p, sign in zip(pieces, signs, strict=True)]
        )
        total = total + (weight.double() @ k(rows, rows) @ weight.double())

    names = sorted(set(of_real.tolist()) | set(of_fixed.tolist()) | set(of_new.tolist()))
    every, labels = torch.cat([u, g]), torch.cat([of_fixed, of_new])
    centre = torch.tensor([1 / len(names) if c in names else 0.0 for c in range(targets.shape[1])]).double()
    kernel = every @ every.T
    ridge = 0.01 * kernel.detach().diagonal().mean() * torch.eye(len(every), dtype=torch.float64)
    solved = torch.linalg.solve(kernel + ridge, F.one_hot(labels, targets.shape[1]) - centre)
    held = sorted(set(of_real.tolist()))
    errors, weights = list[Tensor](), list[float]()
    for row, c in [*zip(r, of_real.tolist(), strict=True), *zip(u, of_fixed.tolist(), strict=True)]:
        missed = row @ every.T @ solved - (F.one_hot(torch.tensor(c), targets.shape[1]) - centre)
        errors.append(missed.square().sum())
        is_record = len(weights) < len(r)
        others = 0.0 if c in held else len(r) / len(held) / int((of_fixed == c).sum())
        weights.append(1.0 if is_record else others)
    weighed = torch.tensor(weights, dtype=torch.float64)
    error = (weighed * torch.stack(errors)).sum() / weighed.sum() / 2
    alpha = min(1, max(0.01, (len(every) / len(names) / 10) ** 4))
    return alpha * total + 3 * error


@pytest.mark.parametrize("new", [(2, 1, 0, 1, 1), (9, 9, 0, 12, 9)])
@pytest.mark.parametrize("counts", [FIXED, (9, 8, 9, 7, 9), (0, 0, 4, 0, 0, 1, 1)])
def test_loss_and_gradient_are_those_of_the_formula(
    step: MakeStep, counts: tuple[int, ...], new: tuple[int, ...]
) -> None:
    draw, data, synthetic = step(synthetic=new)
    images, targets = fixed(counts)
    loss, gradient = both(Residual(images, targets, SHARE), draw, data, synthetic)
    leaf = synthetic.images.detach().clone().requires_grad_()
    expected = naive(draw, data, Synthetic(leaf, synthetic.targets), images, targets)
    expected_gradient = torch.autograd.grad(expected, leaf)[0]
    torch.testing.assert_close(loss, expected.detach().float(), rtol=1e-3, atol=0)
    assert (gradient - expected_gradient).abs().max() <= 2e-3 * expected_gradient.abs().max()


@pytest.mark.parametrize("new", [(2, 1, 0, 1, 1), (10, 9, 0, 12, 9)])
@pytest.mark.parametrize("real", [(7, 3, 0, 12, 1), (0, 5, 0, 0, 0)])
def test_without_fixed_images_it_is_the_default_objective(
    step: MakeStep, real: tuple[int, ...], new: tuple[int, ...]
) -> None:
    toy = step(real=real, synthetic=tuple(n if real[c] else 0 for c, n in enumerate(new)))
    nothing = Residual(torch.empty(0, 3, 8, 8), torch.empty(0, 5), SHARE)
    for mine, theirs in zip(both(nothing, *toy), both(KernelMeansAndRidge(), *toy), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_where_the_fixed_images_match_already_copies_of_them_feel_nothing(step: MakeStep) -> None:
    """The fixed images are the records themselves: nothing is lacking, whatever the owner's share is."""
    draw, data, _ = step(real=(4, 4, 0, 4, 4), operations=())
    batch = data.batch(torch.arange(len(data)))
    alone = KernelMeansAndRidge(weights=(1.0, 0.0))
    there = Residual(batch.images, batch.targets, SHARE, alone)
    loss, gradient = both(there, draw, data, Synthetic(batch.images, batch.targets))
    others = Residual(*fixed((4, 4, 0, 4, 4)), SHARE, alone)
    usual, usual_gradient = both(others, draw, data, Synthetic(batch.images, batch.targets))
    assert abs(float(loss)) < 1e-3 * float(usual)
    assert float(gradient.abs().max()) < 1e-2 * float(usual_gradient.abs().max())


def test_a_site_of_one_class_is_told_what_separates_it_from_those_of_others(step: MakeStep) -> None:
    """Alone it learns nothing of a boundary; beside fixed images of another class its regression says something."""
    toy = step(real=(0, 6, 0, 0, 0), synthetic=(0, 2, 0, 0, 0))
    ridge = KernelMeansAndRidge(weights=(0.0, 3.0))
    _, alone = both(ridge, *toy)
    _, beside = both(Residual(*fixed((0, 0, 0, 0, 0, 3)), SHARE, ridge), *toy)
    assert float(alone.abs().max()) == pytest.approx(0, abs=1e-6)
    assert float(beside.abs().max()) > 1e-4


def test_fixed_images_are_not_changed_and_what_is_kept_carries_no_graph(step: MakeStep) -> None:
    draw, data, synthetic = step(real=(7, 3, 2, 12, 1))
    images, targets = fixed()
    objective = Residual(images.clone(), targets, SHARE)
    observed = Own(data).observe(objective, draw)
    tensors = [*observed.real, *observed.fixed, observed.between, observed.within, observed.share]
    assert not any(tensor.requires_grad for tensor in tensors)
    loss, gradient = both(objective, draw, data, synthetic)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert torch.equal(objective.images, images)


def test_a_set_is_condensed_beside_others_and_says_so_in_few_bytes(step: MakeStep) -> None:
    _, data, _ = step(real=(7, 3, 0, 12, 1))
    images, targets = fixed()
    made = condense(data, 1, Residual(images, targets, SHARE), "pixels", network="convnet1-w16", steps=2)
    assert made.record.method == f"Residual({len(images)} images)"
    again = condense(data, 1, Residual(images, targets, SHARE), "pixels", network="convnet1-w16", steps=2)
    other = condense(data, 1, Residual(images + 1, targets, SHARE), "pixels", network="convnet1-w16", steps=2)
    assert torch.equal(made.pixels().images, again.pixels().images)
    assert not torch.equal(made.pixels().images, other.pixels().images)

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedcondense.condensing.holders import Own
from fedcondense.contract import Draw, Synthetic
from fedcondense.data.images import Data
from fedcondense.objectives import OBJECTIVES, features
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.objectives.features import FeatureObjective, FeatureRows, Sum
from fedcondense.objectives.ridge import RidgeRegression, means_and_ridge

Step = tuple[Draw, Data, Synthetic]
MakeStep = Callable[..., Step]


@dataclass(frozen=True)
class Energy(FeatureObjective):
    """Half the squared norm of all rows, for gradients that are known: the rows themselves."""

    layer: str = "embedding"
    per_class: int | None = None
    separable = False

    def summarise(self, rows: Tensor, targets: Tensor) -> int:
        return len(rows)

    def merge(self, pieces: Sequence[int]) -> int:
        return sum(pieces)

    def compare(self, observed: int, rows: Tensor, targets: Tensor) -> Tensor:
        return rows.float().square().sum() / 2


def test_rows_are_the_features_of_the_augmented_images(step: MakeStep) -> None:
    draw, _, synthetic = step()
    expected = torch.cat(
        [
            draw.network.features(draw.augment(image[None], target.argmax().view(1)))
            for image, target in zip(synthetic.images, synthetic.targets, strict=True)
        ]
    )
    torch.testing.assert_close(Energy().rows(draw, synthetic), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", [DistributionMatching(), RidgeRegression(), means_and_ridge()])
def test_real_images_are_taken_in_pieces(
    objective: FeatureObjective, step: MakeStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, data, synthetic = step()
    whole = objective.loss(draw, Own(data).observe(objective, draw), synthetic)
    monkeypatch.setattr(features, "_REAL_AT_ONCE", 4)
    torch.testing.assert_close(objective.loss(draw, Own(data).observe(objective, draw), synthetic), whole)


def test_each_piece_holds_all_classes(step: MakeStep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm sees the synthetic images of all classes together, and is to see the real ones so."""

    class Classes(Energy):
        def summarise(self, rows: Tensor, targets: Tensor) -> int:
            seen.append(int((targets.sum(0) > 0).sum()))
            return super().summarise(rows, targets)

    seen: list[int] = []
    draw, data, _ = step()
    monkeypatch.setattr(features, "_REAL_AT_ONCE", len(data) // 2 + 1)
    Own(data).observe(Classes(), draw)
    present = int((data.counts > 1).sum())
    assert len(seen) == 2
    assert min(seen) >= present > 1


def test_all_images_of_a_class_are_seen_where_no_number_is_given(step: MakeStep) -> None:
    draw, data, _ = step()
    assert Own(data).observe(Energy(), draw) == len(data)
    assert Own(data).observe(Energy(per_class=2), draw) == 2 + 2 + 2 + 1


def test_what_is_not_separable_never_builds_a_larger_graph_than_asked(step: MakeStep) -> None:
    """By the closed form of half a squared norm: the gradient of an image is that of its own row."""
    draw, _, synthetic = step()
    graphs: list[int] = []

    class Spied(Energy):
        def rows(self, draw: Draw, batch: Synthetic) -> Tensor:  # type: ignore[override]
            if torch.is_grad_enabled():
                graphs.append(len(batch.images))
            return super().rows(draw, batch)

    loss = Energy().loss(draw, 0, synthetic)
    expected = torch.autograd.grad(loss, synthetic.images)[0]
    total = Spied().backward(draw, 0, synthetic, at_once=3)
    assert graphs == [3, 3, 1]
    torch.testing.assert_close(total, loss.detach())
    assert synthetic.images.grad is not None
    torch.testing.assert_close(synthetic.images.grad, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


class TestSum:
    def test_it_is_the_weighted_sum_of_its_terms(self, step: MakeStep) -> None:
        draw, data, synthetic = step()
        terms = (DistributionMatching(), DistributionMatching(relative=True), RidgeRegression(per_class=256))
        both = Sum(terms, (1.0, 2.0, 0.5))
        apart = [term.loss(draw, Own(data).observe(term, draw), synthetic) for term in terms]
        expected = apart[0] + 2 * apart[1] + 0.5 * apart[2]
        torch.testing.assert_close(both.loss(draw, Own(data).observe(both, draw), synthetic), expected)

    def test_one_pass_over_the_synthetic_images_serves_all(self, step: MakeStep) -> None:
        draw, data, synthetic = step()
        both = means_and_ridge()
        observed = Own(data).observe(both, draw)
        passes: list[int] = []
        draw.network.blocks[0].register_forward_hook(lambda m, i, o: passes.append(len(o)))
        both.loss(draw, observed, synthetic)
        assert passes == [len(synthetic.images)]

    def test_layer_images_and_recipe_are_those_of_the_first_term(self) -> None:
        both = Sum((DistributionMatching("logits", 7), RidgeRegression()), (1.0, 1.0))
        assert (both.layer, both.per_class, both.recipe) == ("logits", 7, DistributionMatching.recipe)

    def test_its_repr_is_the_recipe(self) -> None:
        assert repr(means_and_ridge(ridge=0.5)) == (
            "MeansAndRidge(terms=(DistributionMatching(layer='embedding', per_class=64, relative=True), "
            "RidgeRegression(layer='embedding', per_class=64, penalty=0.01, learn_labels=False)), weights=(1.0, 0.5), "
            "learn_labels=False)"
        )

    @pytest.mark.parametrize("at_once", [512, 3])
    def test_learned_labels_have_the_slope_of_finite_differences(self, step: MakeStep, at_once: int) -> None:
        """Through the class means and the regression, in one pass or two."""
        draw, data, synthetic = step(soft=True, operations=())
        both = means_and_ridge(learn_labels=True)
        observed = Own(data).observe(both, draw)
        targets = synthetic.targets.clone().requires_grad_()
        both.backward(draw, observed, Synthetic(synthetic.images, targets), at_once)
        way = torch.randn(targets.shape, generator=torch.Generator().manual_seed(0))
        losses = [
            float(both.loss(draw, observed, Synthetic(synthetic.images, synthetic.targets + h * way)).detach())
            for h in (1e-3, -1e-3)
        ]
        assert targets.grad is not None
        assert float((targets.grad * way).sum()) == pytest.approx((losses[0] - losses[1]) / 2e-3, rel=0.02)


@pytest.mark.parametrize("objective", [DistributionMatching(), RidgeRegression(), means_and_ridge()])
def test_autocast_holds_for_features_alone(objective: FeatureObjective, step: MakeStep) -> None:
    """Features in bfloat16, everything after them in full precision: close to float32, and a float32 loss."""
    draw, data, synthetic = step()
    exact = objective.loss(draw, Own(data).observe(objective, draw), synthetic)
    with torch.autocast("cpu", torch.bfloat16):
        assert objective.rows(draw, synthetic).dtype == torch.bfloat16
        loss = objective.loss(draw, Own(data).observe(objective, draw), synthetic)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0)
    assert not torch.equal(loss, exact)


def test_a_piece_of_rows_and_a_whole_merge_to_the_same() -> None:
    rows, targets = torch.randn(6, 4), torch.eye(3).repeat(2, 1)
    objective = means_and_ridge()
    parts = objective.merge([objective.summarise(rows[k : k + 2], targets[k : k + 2]) for k in (0, 2, 4)])
    sums, kept = objective.merge([objective.summarise(rows, targets)])
    torch.testing.assert_close(parts[0].sums, sums.sums)
    assert isinstance(kept, FeatureRows)
    assert torch.equal(parts[1].rows, kept.rows)


@pytest.mark.parametrize("name", ["dm", "mmd", "mmd-ridge", "ridge", "ncfm", "frepo"])
@pytest.mark.parametrize("own", [False, True])
def test_batch_norm_sees_all_classes_however_many_images_a_graph_takes(name: str, own: bool, step: Any) -> None:
    """In pieces of a few classes each, gradients had a cosine of 0.7 to 0.8 with those of one graph."""

    class Own(nn.Module):
        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network

        def features(self, images: Tensor, layer: str = "embedding") -> Tensor:
            rows: Tensor = self.network.features(images, layer)
            return rows - rows.mean(0)  # a normalisation of the batch that no module tells of

    draw, data, leaves = step(real=(40,) * 5, synthetic=(48,) * 5, norm="none" if own else "batch")
    if own:
        draw = draw._replace(network=Own(draw.network))
    objective = OBJECTIVES[name]
    observed = objective.observe(draw, data)
    gradients = []
    for at_once in (80 if own else 20, 10_000):
        leaves.images.grad = None
        loss = objective.backward(draw, observed, leaves, at_once)
        assert bool(loss.isfinite())
        assert leaves.images.grad is not None
        gradients.append(leaves.images.grad.flatten())
    first, second = gradients
    assert F.cosine_similarity(first, second, dim=0) > 0.95


@given(
    count=st.integers(2, 7),
    classes=st.integers(1, 5),
    at_once=st.integers(1, 9),
    norm=st.sampled_from(["batch", "none"]),
)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_hold_every_image_once_and_no_more_than_a_graph_may(
    count: int, classes: int, at_once: int, norm: str, step: MakeStep
) -> None:
    sizes = tuple(count if c < classes else 0 for c in range(5))
    draw, data, leaves = step(real=(3,) * 5, synthetic=sizes, norm=norm)
    seen: list[Tensor] = []

    class Watched(DistributionMatching):
        def rows(self, draw: Draw, batch: Any) -> Tensor:
            seen.append(batch.images.detach())
            return super().rows(draw, batch)

    observed = Watched().observe(draw, data)
    seen.clear()
    Watched().backward(draw, observed, leaves, at_once)
    assert max(map(len, seen)) <= (4 * at_once if norm == "batch" else max(at_once, count))
    last = seen[len(seen) // 2 :] if sum(map(len, seen)) > len(leaves.images) else seen  # of two passes
    passed, all_of_them = (rows.flatten(1).sum(1).sort().values for rows in (torch.cat(last), leaves.images.detach()))
    assert torch.equal(passed, all_of_them)

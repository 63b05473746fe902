"""What every objective promises: a new line in OBJECTIVES is a new row here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from fedcondense.checkpoints import Checkpoint
from fedcondense.condensing import Progress, condense, running
from fedcondense.condensing.holders import Own
from fedcondense.contract import Draw, Recipe, Synthetic
from fedcondense.data.images import Data
from fedcondense.errors import SettingError
from fedcondense.networks import ConvNet
from fedcondense.objectives import OBJECTIVES, with_learned_labels

Step = tuple[Draw, Data, Synthetic]
MakeStep = Callable[..., Step]

UNROLLED = ("dd", "mtt", "mtt-recompute", "tesla")
TINY = partial(ConvNet, width=8, depth=2)


def backward(name: str, step: Step, at_once: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    draw, data, synthetic = step
    leaf = synthetic.images.detach().clone().requires_grad_()
    observed = Own(data).observe(OBJECTIVES[name], draw)
    leaves = Synthetic(leaf, synthetic.targets, OBJECTIVES[name].extras())
    loss = OBJECTIVES[name].backward(draw, observed, leaves, at_once)
    assert leaf.grad is not None
    return loss, leaf.grad


def tensors(value: object) -> list[torch.Tensor]:
    """Return the tensors in nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in inner for tensor in tensors(item)]


@pytest.mark.parametrize("name", OBJECTIVES)
class TestEveryObjective:
    def test_gradients_reach_the_leaves_and_nothing_else(self, name: str, step: MakeStep) -> None:
        draw, data, synthetic = step(real=(7, 3, 2, 12, 1))
        weights = [p.clone() for p in draw.network.parameters()]
        images = data.images.clone()
        loss, gradient = backward(name, (draw, data, synthetic))
        assert gradient.flatten(1).abs().sum(1).min() > 0
        assert not loss.requires_grad
        assert loss.ndim == 0
        assert synthetic.targets.grad is None
        assert all(p.grad is None for p in draw.network.parameters())
        assert all(torch.equal(p, w) for p, w in zip(draw.network.parameters(), weights, strict=True))
        assert torch.equal(data.images, images)

    def test_it_keeps_as_much_of_more_records_unless_it_says_so(self, name: str, step: MakeStep) -> None:
        """Sums, gradients and nothing are of one size; rows and records become more. So a holder can trust `keeps`."""
        draw, data, _ = step()
        twice = data.subset(torch.arange(len(data)).repeat(2))
        once, more = (Own(d).observe(OBJECTIVES[name], draw) for d in (data, twice))
        grows = [a.shape != b.shape for a, b in zip(tensors(once), tensors(more), strict=True)]
        assert any(grows) == (OBJECTIVES[name].keeps in ("rows", "records"))
        assert (not grows) == (OBJECTIVES[name].keeps == "nothing")

    def test_nothing_that_is_observed_carries_a_graph(self, name: str, step: MakeStep) -> None:
        draw, data, _ = step()
        observed = Own(data).observe(OBJECTIVES[name], draw)
        found = tensors(observed)
        assert found or observed is None
        assert not any(tensor.requires_grad for tensor in found)

    def test_a_class_that_the_data_lack_changes_nothing(self, name: str, step: MakeStep) -> None:
        """Separable: its synthetic images feel nothing and are not felt. Otherwise: with none of either, no trace."""
        draw, data, synthetic = step()  # the data lack class 2
        others = synthetic.targets.argmax(1) != 2
        without = Synthetic(synthetic.images[others].detach(), synthetic.targets[others])
        loss, gradient = backward(name, (draw, data, without))
        assert loss.isfinite()
        assert gradient.isfinite().all()
        if OBJECTIVES[name].separable:
            whole_loss, whole_gradient = backward(name, (draw, data, synthetic))
            torch.testing.assert_close(whole_loss, loss)
            torch.testing.assert_close(whole_gradient[others], gradient)
            assert not whole_gradient[~others].any()

    def test_one_class_alone_is_fine(self, name: str, step: MakeStep) -> None:
        loss, gradient = backward(name, step(real=(0, 5, 0, 0, 0), synthetic=(0, 2, 0, 0, 0)))
        assert loss.isfinite()
        assert gradient.isfinite().all()

    def test_a_small_graph_gives_the_loss_and_gradient_of_a_large_one(self, name: str, step: MakeStep) -> None:
        toy = step()
        (loss, gradient), (small_loss, small_gradient) = backward(name, toy), backward(name, toy, at_once=2)
        torch.testing.assert_close(small_loss, loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(small_gradient, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))

    def test_same_draw_same_loss_and_gradient_bit_by_bit(self, name: str, step: MakeStep) -> None:
        torch.manual_seed(1)
        first = backward(name, step())
        torch.manual_seed(2)
        before = torch.random.get_rng_state()
        toy = step()
        torch.random.set_rng_state(before)
        second = backward(name, toy)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])

    def test_a_small_step_down_the_gradient_lowers_the_loss(self, name: str, step: MakeStep) -> None:
        """And by what the gradient says, to first order: the sign and the size of it."""
        if name in UNROLLED:
            pytest.skip("so many units switch in a window that float32 cannot tell; its own tests do in float64")
        draw, data, synthetic = step(real=(7, 3, 2, 12, 1), operations=())
        loss, gradient = backward(name, (draw, data, synthetic))
        size = 1e-4 * float(loss / gradient.square().sum())  # so little that few units of the network switch
        moved = Synthetic(synthetic.images.detach() - size * gradient, synthetic.targets)
        after, _ = backward(name, (draw, data, moved))
        assert float(loss - after) / float(1e-4 * loss) == pytest.approx(1, abs=0.25)

    def test_its_repr_is_its_recipe(self, name: str) -> None:
        assert " at 0x" not in repr(OBJECTIVES[name])
        assert isinstance(OBJECTIVES[name].recipe, Recipe)

    def test_it_learns_labels_or_says_which_ones_can(self, name: str, step: MakeStep) -> None:
        _, data, _ = step(real=(7, 3, 0, 12, 1))
        if OBJECTIVES[name].separable:
            with pytest.raises(SettingError, match=rf"{name} cannot learn soft labels; .* dm-ridge,.* frepo"):
                with_learned_labels(OBJECTIVES[name])
            return
        made = condense(data, 2, with_learned_labels(OBJECTIVES[name]), network=TINY, steps=2)
        (part,) = made.parts
        assert part.targets.dtype == torch.float16
        assert 0 < float(part.targets.float().amax(1).min()) < 1
        torch.testing.assert_close(part.targets.float().sum(1), torch.ones(len(part.targets)), atol=2e-3, rtol=0)

    def test_condense_takes_it_by_name_and_resumes_bit_by_bit(
        self, name: str, step: MakeStep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(running, "_LOOK_S", 0.0)
        _, data, _ = step(real=(7, 3, 0, 12, 1))

        def run(checkpoint: Checkpoint | None, stop: int | None = None) -> bytes:
            def progress(now: Progress) -> None:
                if now.step == stop:
                    raise KeyboardInterrupt

            made = condense(data, 2, name, network=TINY, steps=6, checkpoint=checkpoint, progress=progress)
            assert made.record.method == name
            return made.with_record(seconds=0.0).to_bytes()

        unbroken, path = run(None), tmp_path / "checkpoint"
        with pytest.raises(KeyboardInterrupt):
            run(Checkpoint(path, every_s=0), stop=4)
        assert run(Checkpoint(path, every_s=0, resume=True)) == unbroken

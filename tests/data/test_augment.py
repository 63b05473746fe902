from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fedcondense as fc
from fedcondense.data.augment import AUGMENTATIONS, OPERATIONS, Augmentation, augmentations
from fedcondense.errors import SettingError


def color(x: Tensor, u: list[float]) -> Tensor:
    """Brightness, saturation, contrast, in this order."""
    x = x + (u[0] - 0.5)
    mean = x.mean(0, keepdim=True)
    x = (x - mean) * (2 * u[1]) + mean
    mean = x.mean()
    return (x - mean) * (u[2] + 0.5) + mean


def crop(x: Tensor, u: list[float]) -> Tensor:
    """Move by whole pixels; what comes in from outside is zero."""
    _, height, width = x.shape
    reach_x, reach_y = int(width * 0.125 + 0.5), int(height * 0.125 + 0.5)
    right, down = math.floor(u[0] * (2 * reach_x + 1)) - reach_x, math.floor(u[1] * (2 * reach_y + 1)) - reach_y
    out = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            if 0 <= i + down < height and 0 <= j + right < width:
                out[:, i, j] = x[:, i + down, j + right]
    return out


def cutout(x: Tensor, u: list[float]) -> Tensor:
    """Zero a square of half the side around a centre; as published, indices outside are clamped to the border."""
    out = x.clone()
    rows, columns = (
        [
            min(max(k + math.floor(v * (side + 1 - size % 2)) - size // 2, 0), side - 1)
            for size in [int(side * 0.5 + 0.5)]
            for k in range(size)
        ]
        for v, side in ((u[0], x.shape[1]), (u[1], x.shape[2]))
    )
    for i in rows:
        for j in columns:
            out[:, i, j] = 0
    return out


def flip(x: Tensor, u: list[float]) -> Tensor:
    return x.flip(2) if u[0] < 0.5 else x


def sampled(x: Tensor, theta: list[list[float]]) -> Tensor:
    grid = F.affine_grid(torch.tensor([theta]), [1, *x.shape], align_corners=False)
    return F.grid_sample(x[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def scale(x: Tensor, u: list[float]) -> Tensor:
    across, down = (1 / 1.2 + v * (1.2 - 1 / 1.2) for v in u[:2])
    return sampled(x, [[across, 0, 0], [0, down, 0]])


def rotate(x: Tensor, u: list[float]) -> Tensor:
    """As published for square images; in pixels for others."""
    angle = (u[0] - 0.5) * 2 * 15 * math.pi / 180
    across, down = x.shape[2] / 2, x.shape[1] / 2  # pixels in a unit of the sampling grid
    cosine, sine = math.cos(angle), math.sin(angle)
    return sampled(x, [[cosine, -sine * down / across, 0], [sine * across / down, cosine, 0]])


NAIVE: dict[str, Callable[[Tensor, list[float]], Tensor]] = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}


def images(count: int, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def one_row_of_each() -> Augmentation:
    """Six rows, one an operation, none of them neutral."""
    return Augmentation(torch.arange(len(OPERATIONS)), torch.full((len(OPERATIONS), 3), 0.1))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (1, 28, 28), (3, 9, 12)])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_is_the_published_one(operation: str, shape: tuple[int, int, int]) -> None:
    """One image at a time with the formulas of the authors' code, against the one pass over the batch."""
    batch = images(24, shape)
    record = Augmentation.draw((operation,), 24, torch.Generator().manual_seed(1))
    expected = torch.stack([NAIVE[operation](x, u.tolist()) for x, u in zip(batch, record.amounts, strict=True)])
    torch.testing.assert_close(record(batch), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["crop", "cutout"]),
    st.tuples(st.just(1), st.integers(8, 20), st.integers(8, 20)),
    st.lists(st.sampled_from([0.0, 0.249, 0.5, 0.75, 0.999]), min_size=3, max_size=3),
)
def test_shifts_and_squares_hold_at_every_edge(operation: str, shape: tuple[int, int, int], u: list[float]) -> None:
    batch = images(1, shape)
    record = Augmentation(torch.tensor([OPERATIONS.index(operation)]), torch.tensor([u]))
    torch.testing.assert_close(record(batch)[0], NAIVE[operation](batch[0], u), rtol=1e-5, atol=2e-5)


def test_mixed_operations_in_one_batch_do_not_touch_each_other() -> None:
    batch, record = images(6), one_row_of_each()
    expected = [NAIVE[name](x, [0.1] * 3) for name, x in zip(OPERATIONS, batch, strict=True)]
    torch.testing.assert_close(record(batch), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_a_record_does_the_same_to_batches_of_different_sizes() -> None:
    """Siamese: what an image becomes depends on its row alone, not on how many stand beside it."""
    record, many = one_row_of_each(), images(60)
    rows = torch.arange(60) % 6
    together = record(many, rows)
    for few in ([0], [7, 3], list(range(20, 45))):
        torch.testing.assert_close(record(many[few], rows[few]), together[few], rtol=0, atol=0)


def test_without_rows_each_image_has_its_own() -> None:
    batch, record = images(6), one_row_of_each()
    torch.testing.assert_close(record(batch), record(batch, torch.arange(6)), rtol=0, atol=0)
    same = record(images(1).expand(6, -1, -1, -1))
    assert len(torch.unique(same.flatten(1), dim=0)) == 6


def test_no_operations_leave_images_as_they_are() -> None:
    record = Augmentation.draw((), 5, torch.Generator())
    batch = images(5, (1, 28, 28))
    torch.testing.assert_close(record(batch), batch, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_are_those_of_the_naive_operation(operation: str) -> None:
    record = Augmentation.draw((operation,), 8, torch.Generator().manual_seed(2))
    fast, slow = images(8).requires_grad_(), images(8).requires_grad_()
    record(fast).square().sum().backward()
    torch.stack(
        [NAIVE[operation](x, u.tolist()) for x, u in zip(slow, record.amounts, strict=True)]
    ).square().sum().backward()
    assert fast.grad is not None
    assert fast.grad.abs().sum() > 0
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-4, atol=1e-4)


def test_a_record_follows_from_its_generator_and_leaves_the_global_state_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = (Augmentation.draw(OPERATIONS, 50, torch.Generator().manual_seed(3)) for _ in range(2))
    other = Augmentation.draw(OPERATIONS, 50, torch.Generator().manual_seed(4))
    first(images(50))
    assert torch.equal(first.choice, second.choice)
    assert torch.equal(first.amounts, second.amounts)
    assert not torch.equal(first.amounts, other.amounts)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_operations_are_drawn_uniformly_and_only_the_allowed_ones() -> None:
    """Two thousand of each expected, deviation 37: five of them are 183."""
    allowed = ("crop", "scale", "rotate")
    record = Augmentation.draw(allowed, 6000, torch.Generator().manual_seed(0))
    counts = torch.bincount(record.choice, minlength=len(OPERATIONS))
    assert counts[[0, 2, 3]].sum() == 0
    assert (counts[[1, 4, 5]] - 2000).abs().max() < 183
    assert 0 <= record.amounts.min() <= record.amounts.max() < 1


def test_half_of_the_flips_flip() -> None:
    record = Augmentation.draw(("flip",), 1000, torch.Generator().manual_seed(0))
    batch = images(1).expand(1000, -1, -1, -1)
    flipped = (record(batch)[:, :, :, 0] - batch[:, :, :, -1]).abs().amax((1, 2)) < 1e-4
    assert 420 < int(flipped.sum()) < 580


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_of_the_images_stays(dtype: torch.dtype) -> None:
    assert one_row_of_each()(images(6).to(dtype)).dtype == dtype


def test_an_unknown_operation_is_refused_with_the_closest() -> None:
    with pytest.raises(SettingError, match=r"no augmentation is called 'colour'; did you mean 'color'\? all of them"):
        Augmentation.draw(("colour",), 1, torch.Generator())


def test_an_operation_that_takes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AUGMENTATIONS, "plain", lambda images: images)
    with pytest.raises(SettingError, match=r"augmentation 'plain': too many .* needed: f\(images, amounts\)"):
        Augmentation.draw(("plain",), 1, torch.Generator())


def test_an_operation_of_one_s_own_is_drawn_shared_and_changes_its_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each of two classes: real and synthetic images of a class are darkened by the row's first number."""
    monkeypatch.setitem(AUGMENTATIONS, "darker", lambda x, u: x - u[:, 0].view(-1, 1, 1, 1))
    record = Augmentation.draw(("flip", "darker"), 40, torch.Generator().manual_seed(0))
    mine = augmentations().index("darker")
    assert set(record.choice.tolist()) == {OPERATIONS.index("flip"), mine}
    row = int((record.choice == mine).nonzero()[0])
    other = int((record.choice == OPERATIONS.index("flip")).nonzero()[0])
    for count in (2, 7):  # of whatever size a branch is
        batch = images(count)
        rows = torch.full((count,), row)
        rows[0] = other
        changed = record(batch, rows)
        torch.testing.assert_close(changed[1:], batch[1:] - record.amounts[row, 0], rtol=1e-5, atol=1e-5)
        plain = Augmentation(record.choice, record.amounts)(batch, rows)
        torch.testing.assert_close(changed[0], plain[0])
    monkeypatch.setitem(AUGMENTATIONS, "darker", lambda x, u: x[:, :, 1:])
    with pytest.raises(SettingError, match="augmentation 'darker' returns"):
        record(images(40))


def test_a_set_records_an_operation_of_one_s_own_and_is_trained_on_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def noted(x: Tensor, u: Tensor) -> Tensor:
        calls.append(len(x))
        return x

    monkeypatch.setitem(AUGMENTATIONS, "noted", noted)
    train, test = fc.load_data("digits")
    train = fc.Data(train.images, train.labels, replace(train.spec, operations=("crop", "noted")))
    synthetic = fc.condense(train, ipc=1, objective="dm", steps=2, network="convnet1-w16")
    assert len(calls) > 1
    again = fc.SyntheticSet.from_bytes(blob := synthetic.to_bytes())
    assert again.record.augmentation == ("crop", "noted")
    calls.clear()
    fc.evaluate(again, test, network="convnet1-w16", recipe=fc.Fit(steps=3), seeds=[0])
    assert calls == [10, 10, 10]
    monkeypatch.delitem(AUGMENTATIONS, "noted")
    unknown = fc.SyntheticSet.from_bytes(blob)  # reading and showing need no function
    assert "augmentation: crop, noted" in unknown.card()
    assert unknown.to_bytes() == blob
    with pytest.raises(SettingError, match=r"no augmentation is called 'noted'; .*--plugin FILE"):
        fc.train(unknown, network="convnet1-w16", recipe=fc.Fit(steps=3))
    fc.train(unknown, network="convnet1-w16", recipe=fc.Fit(steps=3, augment=False))

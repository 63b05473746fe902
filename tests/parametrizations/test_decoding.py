from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedcondense.errors import SettingError
from fedcondense.parametrizations import decoding
from fedcondense.parametrizations.decoding import in_pieces, into_unit_range, smaller


def test_values_are_clamped_and_gradients_pass_where_descent_leads_back() -> None:
    """Descent moves against the gradient: below 0 only a negative one leads back, above 1 only a positive one."""
    images = torch.tensor([-0.5, -0.5, 0.0, 0.3, 1.0, 1.5, 1.5], requires_grad=True)
    gradient = torch.tensor([2.0, -2.0, 3.0, -1.0, -3.0, 2.0, -2.0])
    clamped = into_unit_range(images)
    assert torch.equal(clamped, images.detach().clamp(0, 1))
    clamped.backward(gradient)
    assert images.grad is not None
    assert images.grad.tolist() == [0, -2, 3, -1, -3, 2, 0]


def test_a_pixel_outside_comes_back_by_descent() -> None:
    """A plain clamp has no gradient at 1.2, and the pixel would stay white."""
    pixel = torch.tensor(1.2, requires_grad=True)
    for _ in range(20):
        (gradient,) = torch.autograd.grad((into_unit_range(pixel) - 0.4).square(), pixel)
        pixel = (pixel.detach() - 0.2 * gradient).requires_grad_()
    assert pixel.item() == pytest.approx(0.4, abs=1e-3)


@pytest.mark.parametrize("at_once", [1, 40, 1000])
def test_pieces_give_the_images_and_gradients_of_the_whole(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_AT_ONCE", at_once)
    rows: list[int] = []
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    codes = torch.randn(7, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def decode(some: Tensor) -> Tensor:
        rows.append(len(some))
        return torch.sin(some @ weight).view(-1, 1, 2, 3)

    images = in_pieces(decode, codes, widest=12)
    assert rows == {1: [1] * 7, 40: [3, 3, 1], 1000: [7]}[at_once]
    found = torch.autograd.grad(images.square().sum(), (codes, weight))
    whole = torch.sin(codes @ weight).view(-1, 1, 2, 3)
    expected = torch.autograd.grad(whole.square().sum(), (codes, weight))
    torch.testing.assert_close(images, whole)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        assert torch.equal(in_pieces(decode, codes, widest=12), images)


def test_sides_that_do_not_divide_are_refused_with_numbers_that_do() -> None:
    assert smaller((3, 12, 28), 4) == (3, 3, 7)
    with pytest.raises(
        SettingError, match=r"images of 28x30; needed: sides that divide by 4; numbers that do: \[1, 2\]"
    ):
        smaller((1, 28, 30), 4)

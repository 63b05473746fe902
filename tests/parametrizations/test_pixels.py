from __future__ import annotations

import pytest
import torch

from fedcondense.parametrizations import Pixels


def test_a_stored_image_is_a_synthetic_image() -> None:
    images, targets = torch.rand(3, 1, 8, 8), torch.eye(3)
    codes, kept = Pixels().encode(images, targets)
    decoded = Pixels().decode(codes, kept)
    assert torch.equal(decoded.images, images)
    assert torch.equal(decoded.targets, targets)


def test_codes_are_a_copy_of_the_start() -> None:
    images = torch.rand(2, 1, 8, 8)
    codes, _ = Pixels().encode(images, torch.eye(2))
    codes["images"].zero_()
    assert images.sum() > 0


def test_an_image_costs_an_image() -> None:
    assert Pixels().start_count(7) == 7
    assert Pixels().decoded({"images": (5, 1, 8, 8)}, (1, 8, 8)) == 5


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images of \(5, 3, 8, 8\); needed: \(N, 1, 8, 8\)"):
        Pixels().decoded({"images": (5, 3, 8, 8)}, (1, 8, 8))

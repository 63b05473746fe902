from __future__ import annotations

import torch
from torch import Tensor

from fedcondense.randomness import stream
from fedcondense.training.mixing import cutmix, draw_box


def naive_cutmix(images: Tensor, targets: Tensor, partners: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    top, left, bottom, right = box.tolist()
    mixed, wanted = images.clone(), targets.clone()
    share = max(0, bottom - top) * max(0, right - left) / images[0, 0].numel()
    for k, partner in enumerate(partners.tolist()):
        mixed[k, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
        wanted[k] = (1 - share) * targets[k] + share * targets[partner]
    return mixed, wanted


def test_cutmix_pastes_a_rectangle_and_its_share_of_the_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 1, 8, 8, generator=generator)
    targets = torch.rand(5, 3, generator=generator).softmax(1)
    shares = []
    for seed in range(60):
        partners, box = draw_box(1.0, images, 5, stream(seed, "box"))
        mixed, wanted = cutmix(images, targets, partners, box)
        for found, expected in zip((mixed, wanted), naive_cutmix(images, targets, partners, box), strict=True):
            torch.testing.assert_close(found, expected)
        assert wanted.sum(1).allclose(torch.ones(5))
        shares.append(float((box[2:] - box[:2]).clamp_min(0).prod()) / 64)
    assert min(shares) == 0
    assert max(shares) > 0.5


def test_a_box_is_drawn_as_often_as_asked_and_else_changes_nothing() -> None:
    drawn = [draw_box(0.3, torch.zeros(4, 1, 8, 8), 4, stream(seed, "box")) for seed in range(300)]
    none = [not box.any() for _, box in drawn]
    assert 0.6 < sum(none) / 300 < 0.8
    assert all(torch.equal(partners, torch.arange(4)) for (partners, _), off in zip(drawn, none, strict=True) if off)

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedcondense.errors import SettingError
from fedcondense.parametrizations import Latents, latents
from fedcondense.sets.parts import to_storage


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(count: int, seed: int = 0) -> Tensor:
    """Draw images of few degrees of freedom, (N, 1, 16, 16) in [0, 1]."""
    return F.interpolate(images(count, 1, 2, 2, seed=seed), size=16, mode="bilinear", align_corners=False)


def test_an_image_is_what_the_generator_makes_of_its_latent() -> None:
    """Naive: latent by latent, with the layers written out. Codes are a fourth of what they stand for."""
    kind, width, length, channels = Latents(upsamplings=2), 3, 5, 2
    generator = torch.Generator().manual_seed(0)
    row = 9 * width + 1
    codes = {
        "latents": torch.randn(4, length, generator=generator) / 4,
        "stem": torch.randn(length + 1, width, 2, 3, generator=generator) / 4,
        "convolutions": torch.randn((width + 4 * channels) * row, generator=generator) / 4,
    }
    decoded = kind.decode(codes, torch.eye(4)).images
    first, last = (4 * codes["convolutions"]).view(-1, row).split([width, 4 * channels])

    def convolved(maps: Tensor, rows: Tensor) -> Tensor:
        maps = torch.where(maps > 0, maps, 0.2 * maps)[None]
        if rows is first:
            maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
        return F.conv2d(maps, rows[:, :-1].reshape(-1, width, 3, 3) / math.sqrt(9 * width), rows[:, -1], padding=1)[0]

    for latent, image in zip(codes["latents"] * 4, decoded, strict=True):
        maps = 4 * codes["stem"][-1]
        for number, part in zip(latent, 4 * codes["stem"][:-1], strict=True):
            maps = maps + number * part / math.sqrt(length + 1)
        four = convolved(convolved(maps, first), last)
        whole = torch.zeros(channels, 8, 12)
        for k, part in enumerate(four):
            whole[k // 4, k % 4 // 2 :: 2, k % 2 :: 2] = part
        torch.testing.assert_close(image, (0.5 + 0.5 * whole).clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_latents_begin_as_principal_components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "_LR", 0.0)
    monkeypatch.setattr(latents, "_STEPS", 1)
    start = images(64, 1, 16, 16)
    codes, _ = Latents().encode(start, torch.ones(64, 1))
    found = codes["latents"] * 4
    torch.testing.assert_close(found.T @ found / 64, torch.eye(found.shape[1]), rtol=0, atol=1e-4)
    rows = start.flatten(1) - start.flatten(1).mean(0)
    variance = (rows.T @ found / 64).square().sum(0)  # of the rows along each
    torch.testing.assert_close(variance, torch.linalg.svdvals(rows)[: len(variance)] ** 2 / 64, rtol=1e-3, atol=0)


def test_the_start_is_a_fit_to_the_start_images() -> None:
    """Images of four degrees of freedom: most of their variance about the mean image is explained."""
    start = smooth(160)
    codes, targets = Latents().encode(start, torch.ones(160, 1))
    error = (Latents().decode(codes, targets).images - start).square().mean()
    assert error < 0.1 * (start - start.mean(0)).square().mean()


@pytest.mark.usefixtures("quick_fit")
@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_generator_has_no_gradient(frozen: bool) -> None:
    kind = Latents(frozen=frozen)
    codes, targets = kind.encode(smooth(80), torch.ones(80, 1))
    for code in codes.values():
        code.requires_grad_()
    kind.decode(codes, targets).images.square().sum().backward()
    assert codes["latents"].grad is not None
    for name in ("stem", "convolutions"):
        assert (codes[name].grad is None) == frozen


@pytest.mark.usefixtures("quick_fit")
def test_a_file_holds_the_generator_and_a_quarter_of_latents() -> None:
    """Images of 28x28 have latents of 784 / 64 numbers. Of ten images of ten classes, the rest is 29,600 numbers: a
    generator of 31 channels takes 13 * 31 * 49 + 35 * (9 * 31 + 1), one of 32 exceeds it."""
    kind = Latents()
    sizes = kind.shapes(800, (1, 28, 28))
    assert sizes == {"latents": (800, 12), "stem": (13, 31, 7, 7), "convolutions": (35 * 280,)}
    assert 13 * 31 * 49 + 35 * 280 <= 78400 // 2 - 800 * 12 < 13 * 32 * 49 + 36 * 289
    codes, targets = Latents().encode(images(80, 1, 28, 28), torch.ones(80, 1))
    stored, _ = to_storage(codes, targets, kind)
    assert sum(code.nbytes for code in stored.values()) == 2 * (80 * 12 + 13 * 4 * 49 + 8 * 37) <= 7840


def test_a_generator_that_does_not_fit_is_refused_with_what_to_change() -> None:
    reason = (
        r"latents of 12 numbers leave 592 bytes for a generator that takes at least 1374; raise ipc or upsamplings, "
        r"or lower per_image \(it is 8\)"
    )
    with pytest.raises(SettingError, match=reason):
        Latents().shapes(8, (1, 28, 28))
    with pytest.raises(SettingError, match="latents of 0 numbers"):
        Latents(per_image=100).shapes(1000, (1, 28, 28))
    with pytest.raises(SettingError, match="needed: sides that divide by 8"):
        Latents(upsamplings=3).shapes(800, (1, 28, 28))


@pytest.mark.parametrize("settings", [{"per_image": 0}, {"upsamplings": 5}, {"upsamplings": 1.0}, {"frozen": 1}])
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"latents with .*; needed: "):
        Latents(**settings)


@pytest.mark.parametrize(
    "shapes",
    [
        {"latents": (9,)},
        {"latents": (9, 6)},
        {"stem": (6, 33, 2, 2)},
        {"stem": (6, 0, 2, 2)},
        {"stem": (6, 3, 2, 3)},
        {"convolutions": (197,)},
        {"convolutions": ()},
    ],
)
def test_shapes_that_are_not_of_one_set_are_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    fits = {"latents": (9, 5), "stem": (6, 3, 2, 2), "convolutions": (7 * 28,)}
    assert Latents().decoded(fits, (1, 8, 8)) == 9
    with pytest.raises(ValueError, match="needed"):
        Latents().decoded({**fits, **shapes}, (1, 8, 8))

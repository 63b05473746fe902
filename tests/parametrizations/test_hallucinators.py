from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedcondense.errors import SettingError
from fedcondense.parametrizations import Hallucinators, hallucinators
from fedcondense.parametrizations.hallucinators import weights
from fedcondense.sets.parts import to_storage


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_pair_is_an_image_as_one_base_in_one_hallucinator_makes_it() -> None:
    """Naive: pair by pair, reading the weights off in the order of the layers."""
    kind, classes = Hallucinators(count=3, bases=3, channels=4), torch.eye(24)
    codes, targets = kind.encode(images(72, 2, 16, 16), classes.repeat_interleave(3, 0))
    codes["hallucinators"] += 0.2 * torch.randn(
        codes["hallucinators"].shape, generator=torch.Generator().manual_seed(2)
    )
    decoded = kind.decode(codes, targets)
    assert torch.equal(targets, classes)
    (size,) = [s for s in kind._sizes((2, 8, 8)) if weights(s, 2) == codes["hallucinators"].shape[1]]
    wide, side = size
    for i, base in enumerate(codes["bases"]):
        for k, flat in enumerate(codes["hallucinators"]):
            numbers = iter(flat.split([wide * 2 * 9, wide * math.prod(side), wide * math.prod(side), 2 * wide * 9, 2]))
            first = next(numbers).view(wide, 2, 3, 3)
            scale, shift = (
                F.interpolate(next(numbers).view(1, wide, *side), size=(8, 8), mode="bilinear") for _ in range(2)
            )
            maps = F.conv2d(base[None], first, padding=1) * scale + shift
            maps = F.interpolate(maps, size=(16, 16), mode="bilinear")
            image = F.conv2d(maps, next(numbers).view(2, wide, 3, 3), next(numbers), padding=1)[0].clamp(0, 1)
            torch.testing.assert_close(decoded.images[3 * i + k], image, rtol=1e-4, atol=1e-5)
            assert torch.equal(decoded.targets[3 * i + k], classes[i])


def test_without_the_deviation_the_start_is_the_base_enlarged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hallucinators, "_DEVIATION", 0.0)
    kind, start = Hallucinators(), images(96, 3, 16, 16)
    codes, targets = kind.encode(start, torch.ones(96, 1))
    torch.testing.assert_close(codes["bases"], F.avg_pool2d(start[::4], 2))
    big = F.interpolate(codes["bases"], scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(kind.decode(codes, targets).images, big.repeat_interleave(4, 0))


def test_hallucinators_start_apart() -> None:
    kind = Hallucinators()
    codes, targets = kind.encode(images(48, 1, 28, 28), torch.ones(48, 1))
    of_one_base = kind.decode(codes, targets).images[:4].flatten(1)
    assert torch.cdist(of_one_base, of_one_base).add(torch.eye(4)).min() > 0.5


@pytest.mark.parametrize(
    ("kind", "count", "size"),
    [
        (Hallucinators(), 1200, 1641),  # 4 channels, a scale and shift for each of 14x14: 73 + 8 * 14**2, the largest
        (Hallucinators(), 120, 201),  # 73 + 8 * 4**2, of 1960 bytes / 8
        (Hallucinators(5), 150, 145),  # 73 + 8 * 3**2, of 1960 bytes / 10
        (Hallucinators(channels=9), 1200, 2341),  # 163 + 18 * 11**2, of 19600 bytes / 8
    ],
)
def test_bytes_that_bases_leave_are_spent_on_hallucinators(kind: Hallucinators, count: int, size: int) -> None:
    shapes = kind.shapes(count, (1, 28, 28))
    number = count // kind.count
    assert shapes["bases"] == (number, 1, 14, 14)
    left = number // 3 * 784 - number * 196
    sizes = [weights(s, 1) for s in kind._sizes((1, 14, 14))]
    chosen = shapes["hallucinators"][1]
    assert chosen == size
    larger = [n for n in sizes if n > chosen]
    assert chosen * 2 * kind.count <= left
    assert not larger or larger[0] * 2 * kind.count > left


def test_a_file_holds_so_many_bytes_of_codes() -> None:
    """At one image of ten classes: 30 bases of 196 bytes leave 1960, of which 4 hallucinators take 201 halves each.

    A hallucinator of 4 channels and maps of 4x4 is 4 * 9 + 2 * 4 * 16 + 4 * 9 + 1 numbers.
    """
    kind = Hallucinators()
    codes, targets = kind.encode(images(120, 1, 28, 28), torch.eye(10).repeat_interleave(12, 0))
    stored, _ = to_storage(codes, targets, kind)
    assert sum(code.nbytes for code in stored.values()) == 30 * 196 + 4 * 2 * 201 <= 7840


@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 20), st.integers(1, 20))
def test_a_number_of_weights_is_of_one_size_alone(channels: int, most: int, height: int, width: int) -> None:
    kind = Hallucinators(channels=most)
    numbers = [weights(size, channels) for size in kind._sizes((channels, height, width))]
    assert numbers == sorted(set(numbers))
    assert bool(numbers) == (channels <= most)


def test_maps_that_fill_the_memory_are_refused_by_who_makes_and_who_reads_a_set() -> None:
    """A file of 2 MB could ask for 8 GB."""
    kind = Hallucinators(count=16, channels=16, downsample=8)
    for ask in (lambda: kind.shapes(64, (1, 4096, 4096)), lambda: kind.decoded({}, (1, 4096, 4096))):
        with pytest.raises(SettingError, match="maps of 4294967296 numbers for images of 4096x4096; allowed"):
            ask()


def test_too_few_bytes_are_refused_with_how_many_images_would_do() -> None:
    """The smallest has 9 + 1 + 1 + 9 + 1 numbers: four take 168 bytes, of which an image of 8x8 leaves 16."""
    reason = (
        "4 hallucinators take 168 bytes, and the bases leave 160; lower count or bases, or raise ipc: "
        "images of all classes together have to be 11, they are 10"
    )
    with pytest.raises(SettingError, match=reason):
        Hallucinators().shapes(120, (1, 8, 8))
    assert Hallucinators().shapes(132, (1, 8, 8))["hallucinators"] == (4, 21)
    with pytest.raises(SettingError, match="hallucinators of 2 channels; images have 3: raise channels"):
        Hallucinators(channels=2).shapes(1200, (3, 8, 8))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"count": 0}, "count 0; needed: a whole number from 1 to 16"),
        ({"channels": 17}, "channels 17; needed: a whole number from 1 to 16"),
        ({"downsample": 2.0}, "downsample 2.0; needed"),
        (
            {"bases": 4},
            "4 bases at 1 / 2 of the resolution take all bytes .* needed: at most 3, or a larger downsample",
        ),
        ({"downsample": 1}, "3 bases at 1 / 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        Hallucinators(**settings)

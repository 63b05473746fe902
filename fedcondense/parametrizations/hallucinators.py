"""Hallucinators (HaBa): Liu et al., NeurIPS 2022, https://arxiv.org/abs/2210.16774"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedcondense.contract import Batch, Codes
from fedcondense.errors import SettingError
from fedcondense.parametrizations.decoding import LARGEST, check_widest, in_pieces, into_unit_range, smaller
from fedcondense.randomness import stream

__all__ = ["Hallucinators"]

_DEVIATION = 0.1  # of the start from the identity: alike, all hallucinators would learn the same


class Size(NamedTuple):
    """The size of a hallucinator."""

    channels: int
    side: tuple[int, int]  # of its scale and shift, before they are enlarged to the bases


@dataclass(frozen=True)
class Hallucinators:
    r"""Store few images per class and a few shared small networks: each network makes one image of each base.

    .. math:: x_{ik} = \mathrm{conv}_k\big(\mathrm{enlarge}(a_k \odot \mathrm{conv}'_k(u_i) + b_k)\big)

    for bases u in bytes and hallucinators of two 3x3 convolutions with a scale a and a shift b for each place, in half
    precision. All pairs are decoded, base by base. Hallucinators take the bytes that the bases leave: first for
    channels, up to `channels`, then for finer scales and shifts, up to one value per pixel of a base. Published are
    bases of full size, five hallucinators of three channels on top of the bytes, one of them drawn for each batch, and
    a loss that pushes two of them apart; here they start apart, each near the identity. Measured on Fashion-MNIST
    (`dm-ridge`, width 32, one seed): 79.2 percent at 1 image per class after 300 steps, and 82.2 at 10 after 100, where
    pixels have 71.4 and 80.9, at a sixth of the time at 10.

    Args:
        count: Hallucinators; 5 as published.
        bases: Bases per plain image, in its bytes.
        downsample: Pixels of the image along a side of a base's pixel, 2 or more; 1 as published, on top of the bytes.
        channels: Most channels of a hallucinator.
    """

    count: int = 4
    bases: int = 3
    downsample: int = 2
    channels: int = 4

    storage: ClassVar[Mapping[str, torch.dtype]] = {"bases": torch.uint8, "hallucinators": torch.float16}
    shared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, most in (("count", 16), ("bases", 63), ("downsample", 8), ("channels", 16)):
            value = getattr(self, name)
            if not (type(value) is int and 1 <= value <= most):
                raise SettingError(f"hallucinators with {name} {value!r}; needed: a whole number from 1 to {most}")
        if self.bases >= self.downsample**2:
            raise SettingError(
                f"{self.bases} bases at 1 / {self.downsample} of the resolution take all bytes of an image and leave "
                f"none for hallucinators; needed: at most {self.downsample**2 - 1}, or a larger downsample"
            )

    def start_count(self, ipc: int) -> int:
        """Return `ipc` times `bases` times `count`: all pairs."""
        return ipc * self.bases * self.count

    def shapes(self, count: int, shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
        """Return (M, C, h, w) bases and (count, P) weights of the largest hallucinators that the bytes allow."""
        small = smaller(shape, self.downsample)
        self._check_maps(shape)
        number = count // self.count
        nbytes = number // self.bases * math.prod(shape) - number * math.prod(small)
        fitting = [n for size in self._sizes(small) if (n := weights(size, small[0])) * 2 * self.count <= nbytes]
        if not fitting:
            least = next(self._sizes(small), None)
            if least is None:
                raise SettingError(f"hallucinators of {self.channels} channels; images have {small[0]}: raise channels")
            needed = 2 * self.count * weights(least, small[0])
            most = -(-needed // (math.prod(shape) - self.bases * math.prod(small)))
            raise SettingError(
                f"{self.count} hallucinators take {needed} bytes, and the bases leave {nbytes}; lower count or bases, "
                f"or raise ipc: images of all classes together have to be {most}, they are {number // self.bases}"
            )
        return {"bases": (number, *small), "hallucinators": (self.count, fitting[-1])}

    def encode(self, images: Tensor, targets: Tensor) -> tuple[Codes, Tensor]:
        """Shrink the first of each `count` start images (N, C, H, W) to a base; hallucinators start near identity."""
        count, *shape = images.shape
        sizes = self.shapes(count, (shape[0], shape[1], shape[2]))
        bases = F.interpolate(images[:: self.count], size=sizes["bases"][2:], mode="area")
        generator = stream(0, "hallucinators")
        hallucinators = _DEVIATION * torch.randn(sizes["hallucinators"], generator=generator)
        first, scale, _, second, _ = self._layers(hallucinators, sizes["bases"][1:])
        for channel in range(shape[0]):
            first[:, channel, channel, 1, 1] += 1
            second[:, channel, channel, 1, 1] += 1
        scale += 1
        return {"bases": bases, "hallucinators": hallucinators.to(images.device)}, targets[:: self.count].clone()

    def decode(self, codes: Codes, targets: Tensor) -> Batch:
        """Send each base through each hallucinator, into [0, 1]; a base's images follow each other."""
        bases = codes["bases"]
        small = bases.shape[1:]
        first, scale, shift, second, bias = self._layers(codes["hallucinators"], small)
        side = small[1:]
        scale, shift = (F.interpolate(m, size=side, mode="bilinear", align_corners=False) for m in (scale, shift))

        def decode(bases: Tensor) -> Tensor:
            maps = F.conv2d(bases, first.flatten(0, 1), padding=1)  # of all hallucinators, (n, count * channels, h, w)
            maps = maps * scale.flatten(0, 1) + shift.flatten(0, 1)
            maps = F.interpolate(maps, scale_factor=self.downsample, mode="bilinear", align_corners=False)
            images = F.conv2d(maps, second.flatten(0, 1), bias.flatten(), padding=1, groups=self.count)
            return into_unit_range(images.unflatten(1, (self.count, small[0])).flatten(0, 1))

        widest = first.shape[0] * first.shape[1] * math.prod(side) * self.downsample**2
        return Batch(in_pieces(decode, bases, widest), targets.repeat_interleave(self.count, dim=0))

    def project(self, codes: Codes) -> None:
        """Clamp bases to [0, 1], and weights to the range of half precision."""
        codes["bases"].clamp_(0, 1)
        codes["hallucinators"].clamp_(-LARGEST, LARGEST)

    def decoded(self, shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, int, int]) -> int:
        """Return M * count for bases (M, C, h, w) and weights (count, P)."""
        self._check_maps(shape)
        bases, hallucinators = shapes["bases"], shapes["hallucinators"]
        small = smaller(shape, self.downsample)
        sizes = [weights(size, small[0]) for size in self._sizes(small)]
        if bases[1:] != small or hallucinators[:1] != (self.count,) or hallucinators[1:] not in [(n,) for n in sizes]:
            raise ValueError(f"bases {bases}, weights {hallucinators}; needed: (N, {small}), ({self.count}, {sizes})")
        return bases[0] * self.count

    def _check_maps(self, shape: tuple[int, int, int]) -> None:
        """Refuse settings with which the maps of a single base, which nothing cuts, fill the memory."""
        check_widest(self.count * self.channels * shape[1] * shape[2], shape, "lower count or channels")

    def _sizes(self, small: tuple[int, ...]) -> Iterator[Size]:
        """Yield the sizes that a hallucinator may have: each has more weights than the one before."""
        channels, height, width = small
        yield from (Size(n, (1, 1)) for n in range(channels, self.channels))
        if channels <= self.channels:
            sides = range(1, max(height, width) + 1)
            yield from (Size(self.channels, (min(side, height), min(side, width))) for side in sides)

    def _layers(self, hallucinators: Tensor, small: tuple[int, ...]) -> list[Tensor]:
        """Return views of weights (count, P): a kernel, scale, shift, a kernel, and its bias, each (count, ...)."""
        size = next(s for s in self._sizes(small) if weights(s, small[0]) == hallucinators.shape[1])
        shapes = layers(size, small[0])
        ends = [0, *accumulate(map(math.prod, shapes))]
        return [hallucinators[:, a:b].unflatten(1, s) for (a, b), s in zip(pairwise(ends), shapes, strict=True)]


def layers(size: Size, channels: int) -> list[tuple[int, ...]]:
    """Return the shapes of a hallucinator's tensors for images of so many channels."""
    maps = (size.channels, *size.side)
    return [(size.channels, channels, 3, 3), maps, maps, (channels, size.channels, 3, 3), (channels,)]


def weights(size: Size, channels: int) -> int:
    """Return how many numbers a hallucinator has."""
    return sum(map(math.prod, layers(size, channels)))

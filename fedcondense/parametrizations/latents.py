"""Latents of a generator (IT-GAN, GLaD), fitted to the data at hand (GLO).

Zhao and Bilen, 2022, https://arxiv.org/abs/2204.07513; Cazenavette et al., CVPR 2023, https://arxiv.org/abs/2305.01649;
Bojanowski et al., ICML 2018, https://arxiv.org/abs/1707.05776
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedcondense.contract import Batch, Codes
from fedcondense.errors import SettingError
from fedcondense.parametrizations.decoding import LARGEST, check_widest, in_pieces, into_unit_range, smaller
from fedcondense.randomness import batches, stream

__all__ = ["Latents"]

_STEPS = 300  # of the fit to the start images
_BATCH = 128
_LR = 0.01
_SCALE = 4  # a code is stored as this part of itself: one step size suits pixels and what varies by one
_WIDEST = 32  # channels


@dataclass(frozen=True)
class Latents:
    r"""Store a small generator that all classes share, and for each synthetic image the latent that it comes from.

    .. math:: x_i = G(z_i), \quad z_i \in \mathbb{R}^d

    G is linear from a latent to maps of 1 / 2**`upsamplings` of the resolution, and a 3x3 convolution goes with each
    enlargement by two: it follows a bilinear one, but the last computes the four pixels of each place. Latents take a
    quarter of the bytes, d = C H W / 8 / `per_image`, and the generator the rest, up to 32 channels; both are in half
    precision. The generator is fitted to the start images together with their latents, which begin as their principal
    components: this takes seconds before the first step. Published are generators that were trained on all of the data,
    or on others, and whose weights are not counted. Measured on Fashion-MNIST (`dm-ridge`, width 32, one seed): 77.0
    percent at 1 image per class after 300 steps, where pixels have 71.4, but 78.1 at 10 after 100, where pixels have
    80.9.

    Args:
        per_image: Images per plain image, in its bytes.
        upsamplings: How often maps are enlarged by two.
        frozen: Learn only the latents after the fit, as in IT-GAN.
    """

    per_image: int = 8
    upsamplings: int = 2
    frozen: bool = False

    storage: ClassVar[Mapping[str, torch.dtype]] = {
        "latents": torch.float16,
        "stem": torch.float16,
        "convolutions": torch.float16,
    }
    shared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, most in (("per_image", 1000), ("upsamplings", 4)):
            value = getattr(self, name)
            if not (type(value) is int and 1 <= value <= most):
                raise SettingError(f"latents with {name} {value!r}; needed: a whole number from 1 to {most}")
        if type(self.frozen) is not bool:
            raise SettingError(f"latents with frozen {self.frozen!r}; needed: true or false")

    def start_count(self, ipc: int) -> int:
        """Return `ipc` times `per_image`."""
        return ipc * self.per_image

    def shapes(self, count: int, shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
        """Return (N, d) latents, the stem with its bias (d + 1, width, h, w), and all convolutions in one row."""
        channels, *grid = smaller(shape, 2**self.upsamplings)
        length = math.prod(shape) // 8 // self.per_image
        left = count // self.per_image * math.prod(shape) // 2 - count * length

        def numbers(width: int) -> int:
            return (length + 1) * width * math.prod(grid) + self._convolutions(width, channels)

        width = max((w for w in range(1, _WIDEST + 1) if numbers(w) <= left), default=0)
        if not (length and width):
            raise SettingError(
                f"latents of {length} numbers leave {2 * left} bytes for a generator that takes at least "
                f"{2 * numbers(1)}; raise ipc or upsamplings, or lower per_image (it is {self.per_image})"
            )
        check_widest(width * math.prod(shape[1:]) // 4, shape, "take smaller images")
        convolutions = (self._convolutions(width, channels),)
        return {"latents": (count, length), "stem": (length + 1, width, *grid), "convolutions": convolutions}

    def encode(self, images: Tensor, targets: Tensor) -> tuple[Codes, Tensor]:
        """Fit a generator and one latent per image to start images (N, C, H, W), on the CPU, repeatably."""
        count, *shape = images.shape
        sizes = self.shapes(count, (shape[0], shape[1], shape[2]))
        generator = stream(0, "latents")
        wanted = images.cpu()
        codes = {name: torch.randn(size, generator=generator) / _SCALE for name, size in sizes.items()}
        left = torch.linalg.svd(wanted.flatten(1) - wanted.flatten(1).mean(0), full_matrices=False)[0]
        components = left[:, : sizes["latents"][1]] * math.sqrt(count)
        codes["latents"][:, : components.shape[1]] = components / _SCALE
        self._fit(codes, wanted, batches(count, _BATCH, _STEPS, generator))
        return {name: code.detach().to(images.device) for name, code in codes.items()}, targets

    def decode(self, codes: Codes, targets: Tensor) -> Batch:
        """Generate an image from each latent, into [0, 1]."""
        stem, flat = codes["stem"], codes["convolutions"]
        if self.frozen:
            stem, flat = stem.detach(), flat.detach()
        widest = math.prod(stem.shape[1:]) * 4 ** (self.upsamplings - 1)
        return Batch(in_pieces(lambda latents: self._generate(latents, stem, flat), codes["latents"], widest), targets)

    def project(self, codes: Codes) -> None:
        """Clamp to the range of half precision; decoding keeps images in theirs."""
        for code in codes.values():
            code.clamp_(-LARGEST, LARGEST)

    def decoded(self, shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, int, int]) -> int:
        """Return N for latents (N, d), a stem (d + 1, width, h, w) and as many numbers as its convolutions have."""
        latents, stem, convolutions = (shapes[name] for name in self.storage)
        channels, *grid = smaller(shape, 2**self.upsamplings)
        if len(latents) != 2 or len(stem) != 4 or not 1 <= stem[1] <= _WIDEST:
            raise ValueError(f"latents {latents}, stem {stem}; needed: (N, d), (d + 1, 1 to {_WIDEST}, h, w)")
        check_widest(stem[1] * math.prod(shape[1:]) // 4, shape, "take smaller images")
        wanted = (latents[1] + 1, stem[1], *grid), (self._convolutions(stem[1], channels),)
        if (stem, convolutions) != wanted:
            raise ValueError(f"stem {stem}, convolutions {convolutions}; needed: {wanted[0]}, {wanted[1]}")
        return latents[0]

    def _generate(self, latents: Tensor, stem: Tensor, flat: Tensor) -> Tensor:
        latents, stem, flat = latents * _SCALE, stem * _SCALE, flat * _SCALE
        width = stem.shape[1]
        maps = (latents @ stem[:-1].flatten(1)) / math.sqrt(len(stem)) + stem[-1].flatten()
        maps = maps.unflatten(1, stem.shape[1:])
        rows = flat.view(-1, 9 * width + 1)  # a kernel and its bias for each map
        *inner, last = rows.split([width] * (self.upsamplings - 1) + [len(rows) - width * (self.upsamplings - 1)])
        for some in inner:
            maps = F.interpolate(F.leaky_relu(maps, 0.2), scale_factor=2, mode="bilinear", align_corners=False)
            maps = self._convolved(maps, some)
        maps = F.pixel_shuffle(self._convolved(F.leaky_relu(maps, 0.2), last), 2)
        return into_unit_range(0.5 + 0.5 * maps)

    def _convolved(self, maps: Tensor, rows: Tensor) -> Tensor:
        width = maps.shape[1]
        return F.conv2d(maps, rows[:, :-1].reshape(-1, width, 3, 3) / math.sqrt(9 * width), rows[:, -1], padding=1)

    def _convolutions(self, width: int, channels: int) -> int:
        return (width * (self.upsamplings - 1) + 4 * channels) * (9 * width + 1)

    def _fit(self, codes: Codes, wanted: Tensor, rows: list[Tensor]) -> None:
        """Adam on the squared error of the images, in place."""
        for code in codes.values():
            code.requires_grad_()
        optimizer = torch.optim.Adam(codes.values(), betas=(0.9, 0.99))
        with torch.enable_grad():
            for step, index in enumerate(rows):
                optimizer.param_groups[0]["lr"] = _LR * (1 + math.cos(math.pi * step / len(rows))) / 2
                images = self._generate(codes["latents"][index], codes["stem"], codes["convolutions"])
                optimizer.zero_grad()
                (images - wanted[index]).square().mean().backward()
                optimizer.step()

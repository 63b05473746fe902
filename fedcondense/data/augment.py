"""Differentiable siamese augmentation (DSA): Zhao and Bilen, ICML 2021, https://arxiv.org/abs/2102.08259

All random numbers of an augmentation sit in one explicit record, so that the real and the synthetic branch share it by
being handed it, not by re-seeding a generator, and whatever their batch sizes are.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedcondense.errors import SettingError, unknown

__all__ = ["AUGMENTATIONS", "OPERATIONS", "Augmentation", "augmentations", "check_augmentations", "own_among"]

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
"""What an augmentation may do: brightness, saturation and contrast; shifts of an eighth; a grey square of half the
side; a mirror image, half the time; stretching by up to 1.2; turning by up to 15 degrees. Constants as published."""

AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
"""Operations of one's own, by names that are none of `OPERATIONS`: functions of normalised images (N, C, H, W) and of
numbers (N, 3) in [0, 1), the rows of the record, that return images of that shape. They draw nothing by themselves, so
that both branches of a matching see the same; they are differentiable in the images, and treat each row by itself."""

_CROP, _CUTOUT, _SCALE, _DEGREES = 0.125, 0.5, 1.2, 15.0


@dataclass(frozen=True)
class Augmentation:
    """One record of augmentations: each row is one operation with its numbers.

    Siamese matching uses a row for each class on both branches; training draws a row for each image.

    Args:
        choice: (R,) int64, which of `OPERATIONS`, and behind those of `AUGMENTATIONS`; -1 leaves the image alone.
        amounts: (R, 3) float32 in [0, 1), what the operation's parameters are computed from.
        own: Those of `AUGMENTATIONS` that a row may have chosen; each costs a call on all images.
    """

    choice: Tensor
    amounts: Tensor
    own: tuple[str, ...] = ()

    @classmethod
    def draw(cls, operations: tuple[str, ...], rows: int, generator: torch.Generator) -> Augmentation:
        """Draw one of `operations` for each of `rows` rows, uniformly; no operations: rows that change nothing."""
        check_augmentations(operations)
        known = augmentations()
        for name in own_among(operations):
            try:
                inspect.signature(AUGMENTATIONS[name]).bind(None, None)
            except TypeError as error:
                raise SettingError(f"augmentation {name!r}: {error}; needed: f(images, amounts)") from None
        if not operations:
            return cls(torch.full((rows,), -1, device="cpu"), torch.zeros(rows, 3, dtype=torch.float32, device="cpu"))
        allowed = torch.tensor([known.index(name) for name in operations], device="cpu")
        choice = allowed[torch.randint(len(operations), (rows,), generator=generator, device="cpu")]
        amounts = torch.rand(rows, 3, generator=generator, dtype=torch.float32, device="cpu")
        return cls(choice, amounts, own_among(operations))

    def to(self, device: torch.device) -> Augmentation:
        """Return the record on a device, so that no call has to copy it there."""
        return Augmentation(self.choice.to(device), self.amounts.to(device), self.own)

    def __call__(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Augment normalised images; differentiable in them.

        Every operation is neutral where its row chose another, so a batch of mixed operations is one pass: a colour
        transform, a mask and one bilinear sampling, with no wait for a device.

        Args:
            images: (N, C, H, W), floating point, normalised: the fill value 0 is the mean colour.
            rows: (N,) int64, the row of each image; None if there is a row for each image.

        Returns:
            (N, C, H, W).
        """
        choice, amounts = (t.to(images.device, non_blocking=True) for t in (self.choice, self.amounts))
        if rows is not None:
            choice, amounts = choice[rows], amounts[rows]
        chosen = {name: choice == k for k, name in enumerate(OPERATIONS)}
        first, second, third = amounts.to(images.dtype).unbind(1)
        images = _color(images, *(torch.where(chosen["color"], u, 0.5) for u in (first, second, third)))
        images = images * _cutout_mask(images, chosen["cutout"], first, second)
        images = _sample(images, _affine(images.shape[-2:], chosen, first, second))
        for name in self.own:
            changed = AUGMENTATIONS[name](images, amounts.to(images.dtype))
            if changed.shape != images.shape:
                raise SettingError(
                    f"augmentation {name!r} returns {tuple(changed.shape)}; needed: {tuple(images.shape)}"
                )
            images = torch.where((choice == augmentations().index(name)).view(-1, 1, 1, 1), changed, images)
        return images


def augmentations() -> tuple[str, ...]:
    """Return all names that an augmentation may draw from: the published ones, and one's own behind them."""
    return (*OPERATIONS, *(name for name in AUGMENTATIONS if name not in OPERATIONS))


def check_augmentations(operations: Sequence[str]) -> None:
    """Refuse names that nothing here stands for: whoever trains with them asks, whoever reads or shows a set does not.

    Raises:
        SettingError: One of them is neither of `OPERATIONS` nor registered.
    """
    known = augmentations()
    for name in operations:
        if name not in known:
            raise SettingError(
                f"{unknown('augmentation', name, known)}; one's own come with the file that adds them to "
                "AUGMENTATIONS: --plugin FILE"
            )


def own_among(operations: Sequence[str]) -> tuple[str, ...]:
    """Return those of some operations that are one's own."""
    return tuple(name for name in operations if name not in OPERATIONS)


def _color(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Change brightness, then saturation, then contrast; all three at 0.5 change nothing."""
    b, s, c = (u.view(-1, 1, 1, 1) for u in (brightness, saturation, contrast))
    images = images + (b - 0.5)
    if images.shape[1] > 1:  # one channel is its own mean
        grey = images.mean(1, keepdim=True)
        images = (images - grey) * (2 * s) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (c + 0.5) + mean


def _cutout_mask(images: Tensor, chosen: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return (N, 1, H, W): zero in a square whose centre is anywhere, one elsewhere."""
    inside = chosen.view(-1, 1, 1, 1)
    for axis, u in ((2, first), (3, second)):
        side = images.shape[axis]
        size = int(side * _CUTOUT + 0.5)
        begin = (u * (side + 1 - size % 2)).floor() - size // 2
        place = torch.arange(side, device=images.device) - begin.unsqueeze(1)
        line = (place >= 0) & (place < size)
        inside = inside & (line.view(-1, 1, side, 1) if axis == 2 else line.view(-1, 1, 1, side))
    return (~inside).to(images.dtype)


def _affine(size: torch.Size, chosen: dict[str, Tensor], first: Tensor, second: Tensor) -> Tensor:
    """Return (N, 2, 3): where each output pixel looks, in coordinates from -1 to 1; the identity unless chosen."""
    one, zero = torch.ones_like(first), torch.zeros_like(first)
    low, high = 1 / _SCALE, _SCALE
    angle = (first - 0.5) * (2 * _DEGREES * math.pi / 180)
    turn, scale, crop = chosen["rotate"], chosen["scale"], chosen["crop"]
    cosine, sine = torch.where(turn, angle.cos(), one), torch.where(turn, angle.sin(), zero)
    across = torch.where(scale, low + first * (high - low), cosine)
    across = torch.where(chosen["flip"] & (first < 0.5), -one, across)
    down = torch.where(scale, low + second * (high - low), cosine)
    shift = []
    for u, side in ((first, size[1]), (second, size[0])):
        reach = int(side * _CROP + 0.5)
        pixels = (u * (2 * reach + 1)).floor() - reach
        shift.append(torch.where(crop, pixels * (2 / side), zero))
    tall = size[0] / size[1]  # in these coordinates, turning an image that is not square shears it as well
    return torch.stack([across, -sine * tall, shift[0], sine / tall, down, shift[1]], 1).view(-1, 2, 3)


def _sample(images: Tensor, affine: Tensor) -> Tensor:
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

"""ConvNet-D: the network of the dataset distillation papers (Gidaris and Komodakis, CVPR 2018, as in DC and DSA)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcondense.errors import SettingError, look_up, unknown

__all__ = ["NORMS", "ConvNet", "Shape", "is_logits", "pool2"]

_LAYERS = ("embedding", "logits")

Shape = tuple[int, int, int]
"""(C, H, W) of an image."""

_CHUNK_BYTES = 4 << 20  # largest activation on a CPU: beyond it, page faults cost more than the arithmetic

NORMS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "instance": lambda c, h, w: nn.GroupNorm(c, c),  # equal to InstanceNorm2d(affine=True), and faster
    "group": lambda c, h, w: nn.GroupNorm(4, c),
    "layer": lambda c, h, w: nn.LayerNorm([c, h, w]),
    "batch": lambda c, h, w: nn.BatchNorm2d(c),
    "none": lambda c, h, w: nn.Identity(),
}


class ConvNet(nn.Module):
    """The ConvNet of the dataset distillation papers: blocks of 3x3 convolution, norm, ReLU, 2x2 average pooling.

    Images whose side is no multiple of 2**depth are zero-padded in the first convolution, as published for 28 (to 32).

    Args:
        shape: (C, H, W) of an image.
        classes: Outputs of the classifier.
        width: Channels of each block; 128 as published; 32 is affordable on a CPU.
        depth: Blocks; as published 3 for 32 pixels, 4 for 64 and 5 for 128, which leaves 4x4 maps.
        norm: A name in `NORMS`; ``"instance"`` as published.
    """

    def __init__(self, shape: Shape, classes: int, width: int = 128, depth: int = 3, norm: str = "instance") -> None:
        super().__init__()
        channels, *sides = shape
        if min(sides) < 2**depth:
            raise SettingError(
                f"a ConvNet of depth {depth} halves {sides[0]}x{sides[1]} to nothing; take a smaller depth"
            )
        padded = [-(-side // 2**depth) * 2**depth for side in sides]
        padding = [1 + (p - side + 1) // 2 for p, side in zip(padded, sides, strict=True)]
        sides = [side + 2 * p - 2 for side, p in zip(sides, padding, strict=True)]
        make_norm = look_up("norm", norm, NORMS)
        self.blocks = nn.ModuleList()
        self.image_bytes = 4 * width * sides[0] * sides[1]  # the largest activation of an image
        for k in range(depth):
            convolution = nn.Conv2d(width if k else channels, width, 3, padding=1 if k else (padding[0], padding[1]))
            self.blocks.append(nn.Sequential(convolution, make_norm(width, *sides)))
            sides = [side // 2 for side in sides]
        self.classifier = nn.Linear(width * sides[0] * sides[1], classes)
        self.mixes_images = norm == "batch"

    def features(self, images: Tensor, layer: str = "embedding") -> Tensor:
        """Return flattened features (N, D), or logits (N, K); on a CPU in chunks that stay in the cache.

        Raises:
            SettingError: The layer is neither ``"embedding"`` nor ``"logits"``.
        """
        wants_logits = is_logits(layer)
        if _by_hand(images) and not (self.mixes_images and self.training):
            pieces = images.split(max(8, _CHUNK_BYTES // self.image_bytes))
        else:
            pieces = (images,)
        features = torch.cat([self._embed(piece) for piece in pieces])
        return self.classifier(features) if wants_logits else features

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (N, K)."""
        return self.features(images, "logits")

    def _embed(self, images: Tensor) -> Tensor:
        in_place = not torch.is_grad_enabled()  # never where a double backward may follow
        for block in self.blocks:
            images = pool2(F.relu(block(images), inplace=in_place))
        return images.flatten(1)


def is_logits(layer: str) -> bool:
    """Say whether a layer is ``"logits"``, what leaves the classifier, or ``"embedding"``, what feeds it.

    Raises:
        SettingError: It is neither.
    """
    if layer not in _LAYERS:
        raise SettingError(unknown("layer", layer, _LAYERS))
    return layer == "logits"


def _by_hand(images: Tensor) -> bool:
    """Say whether a CPU computes now: what is traced for others is plain."""
    return images.device.type == "cpu" and not torch.compiler.is_compiling()


def pool2(images: Tensor) -> Tensor:
    """Average 2x2 pixels, (N, C, H, W) to (N, C, H // 2, W // 2); equal to `F.avg_pool2d(images, 2)`.

    On a CPU one matrix product does it: the stock kernel is scalar code there, and took 40 % of a step.
    """
    n, c, height, width = images.shape
    if not _by_hand(images) or height % 2 or width % 2:
        return F.avg_pool2d(images, 2)
    weights = _pooling_matrix(width, images.dtype)
    return (images.reshape(-1, 2 * width) @ weights).view(n, c, height // 2, width // 2)


@lru_cache(maxsize=64)
def _pooling_matrix(width: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        one_row = torch.eye(width // 2, dtype=torch.float32, device="cpu").repeat_interleave(2, 0) / 4
        return torch.cat([one_row, one_row]).to(dtype)

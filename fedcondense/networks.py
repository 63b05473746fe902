"""Networks by name, with readable features: the ConvNet family of the field, and any `nn.Module`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcondense.errors import SettingError, look_up

__all__ = ["NETWORKS", "ConvNet", "Headed", "build", "default_network", "describe"]

Shape = tuple[int, int, int]
NetworkMaker = Callable[[Shape, int], nn.Module]

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
        width: Channels of each block; 128 as published, 32 bears on a CPU.
        depth: Blocks; as published 3 for 32 pixels and 4 for 64, which leaves 4x4 maps.
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
        """Return flattened features (N, D), or logits (N, K); on a CPU in chunks that stay in the cache."""
        if images.device.type == "cpu" and not (self.mixes_images and self.training):
            pieces = images.split(max(8, _CHUNK_BYTES // self.image_bytes))
        else:
            pieces = (images,)
        features = torch.cat([self._embed(piece) for piece in pieces])
        return self.classifier(features) if layer == "logits" else features

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (N, K)."""
        return self.features(images, "logits")

    def _embed(self, images: Tensor) -> Tensor:
        in_place = not torch.is_grad_enabled()  # never where a double backward may follow
        for block in self.blocks:
            images = pool2(F.relu(block(images), inplace=in_place))
        return images.flatten(1)


def pool2(images: Tensor) -> Tensor:
    """Average 2x2 pixels, (N, C, H, W) to (N, C, H // 2, W // 2); equal to `F.avg_pool2d(images, 2)`.

    On a CPU one matrix product does it: the stock kernel is scalar code there, and took 40 % of a step.
    """
    n, c, height, width = images.shape
    if images.device.type != "cpu" or height % 2 or width % 2:
        return F.avg_pool2d(images, 2)
    weights = _pooling_matrix(width, images.dtype)
    return (images.reshape(-1, 2 * width) @ weights).view(n, c, height // 2, width // 2)


@lru_cache(maxsize=64)
def _pooling_matrix(width: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        one_row = torch.eye(width // 2).repeat_interleave(2, 0) / 4
        return torch.cat([one_row, one_row]).to(dtype)


class Headed(nn.Module):
    """Any classifier as a network of ours: its features are what its last linear layer is fed.

    Args:
        module: Maps (N, C, H, W) to logits (N, K) and has at least one `nn.Linear`.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        heads = [m for m in module.modules() if isinstance(m, nn.Linear)]
        if not heads:
            raise SettingError(f"{type(module).__name__} has no nn.Linear; give it a classifier or a `features` method")
        self.module = module
        heads[-1].register_forward_pre_hook(self._keep)
        self._kept: Tensor | None = None

    def _keep(self, head: nn.Module, inputs: tuple[Tensor]) -> None:
        self._kept = inputs[0]

    def features(self, images: Tensor, layer: str = "embedding") -> Tensor:
        """Return what the classifier is fed, (N, D), or logits (N, K)."""
        logits = self.module(images)
        kept, self._kept = self._kept, None
        return cast(Tensor, logits if layer == "logits" else cast(Tensor, kept).flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (N, K)."""
        return self.features(images, "logits")


def resnet18(shape: Shape, classes: int, norm: str = "instance") -> nn.Module:
    """Return torchvision's ResNet-18 with the small-image stem (3x3, stride 1, no pooling)."""
    from torchvision.models import resnet

    def norm_layer(c: int) -> nn.Module:
        return NORMS[norm](c, 0, 0)

    module = resnet.ResNet(resnet.BasicBlock, [2, 2, 2, 2], num_classes=classes, norm_layer=norm_layer)
    module.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    module.maxpool = nn.Identity()
    return Headed(module)


NETWORKS: dict[str, NetworkMaker] = {
    "convnet2-w32": partial(ConvNet, width=32, depth=2),
    "convnet3-w16": partial(ConvNet, width=16),
    "convnet3-w32": partial(ConvNet, width=32),
    "convnet3-w32-batch": partial(ConvNet, width=32, norm="batch"),
    "convnet3-w32-none": partial(ConvNet, width=32, norm="none"),
    "convnet3-w64": partial(ConvNet, width=64),
    "convnet3-w128": partial(ConvNet, width=128),
    "convnet4-w32": partial(ConvNet, width=32, depth=4),
    "convnet4-w128": partial(ConvNet, width=128, depth=4),
    "resnet18": resnet18,
    "resnet18-batch": partial(resnet18, norm="batch"),
}
"""Networks by name: each builds an untrained module for images of a shape and a number of classes."""


def default_network(shape: Shape) -> str:
    """Return the network that is used unless one is named: width 32, as deep as the images are large."""
    side = min(shape[1:])
    return "convnet2-w32" if side < 16 else "convnet3-w32" if side < 48 else "convnet4-w32"


def build(network: str | NetworkMaker, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Build a network on the CPU; equal seeds give equal weights, and the global random state is left alone."""
    make = look_up("network", network, NETWORKS) if isinstance(network, str) else network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make(shape, classes)
    return module if hasattr(module, "features") else Headed(module)


def describe(network: str | NetworkMaker) -> str:
    """Return a network's name for a record."""
    return network if isinstance(network, str) else getattr(network, "__name__", None) or repr(network)

"""Networks to test a set on that was condensed with others: small-image variants, as in the papers of the field.

Sizes and layers of the first four follow DC (Zhao, Mopuri and Bilen, ICLR 2021), where the first layer pads 28 pixels
to 32. ResNet, MobileNet and ViT are torchvision's, with a stem for small images. All can be differentiated twice, as
gradient matching and unrolled training need.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedcondense.errors import SettingError
from fedcondense.networks.convnet import NORMS, Shape
from fedcondense.networks.headed import Headed

__all__ = ["alexnet", "lenet", "mlp", "mobilenet_v3_small", "resnet18", "vgg11", "vit_small"]


def mlp(shape: Shape, classes: int) -> nn.Module:
    """Return a perceptron with two hidden layers of 128, for images of any size."""
    channels, height, width = shape
    layers = [nn.Flatten(), nn.Linear(channels * height * width, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    return Headed(nn.Sequential(*layers, nn.Linear(128, classes)))


def lenet(shape: Shape, classes: int) -> nn.Module:
    """Return LeNet-5 (LeCun et al., Proc. IEEE 1998) with ReLU and max pooling: 6 and 16 channels, then 120 and 84."""
    _check("lenet", shape, smallest=12)
    channels, height, width = shape
    padding = 2 if min(height, width) < 32 else 0  # 28 to 32, as the original
    height, width = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width))
    return Headed(
        nn.Sequential(
            *(nn.Conv2d(channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(16 * height * width, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)),
        )
    )


def alexnet(shape: Shape, classes: int) -> nn.Module:
    """Return AlexNet (Krizhevsky et al., NeurIPS 2012) for small images: five convolutions and one linear layer."""
    _check("alexnet", shape, smallest=8)
    channels, height, width = shape
    padding = 4 if min(height, width) < 32 else 2  # 28 to 32
    height, width = ((side + 2 * padding - 4) // 8 for side in (height, width))
    return Headed(
        nn.Sequential(
            *(nn.Conv2d(channels, 128, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(128, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(192, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 192, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(192, 192, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            nn.Linear(192 * height * width, classes),
        )
    )


def vgg11(shape: Shape, classes: int, norm: str = "instance") -> nn.Module:
    """Return VGG-11 (Simonyan and Zisserman, ICLR 2015) for small images: a norm per convolution, one linear layer."""
    _check("vgg11", shape, smallest=28)  # below, the last norm would see a single pixel per channel
    channels, height, width = shape
    padding = 3 if min(height, width) < 32 else 1  # 28 to 32
    height, width = ((side + 2 * padding - 2) // 32 for side in (height, width))
    layers: list[nn.Module] = []
    for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for out in stage:
            convolution = nn.Conv2d(channels, out, 3, padding=1 if layers else padding)
            layers += [convolution, NORMS[norm](out, 0, 0), nn.ReLU()]
            channels = out
        layers.append(nn.MaxPool2d(2))
    return Headed(nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * height * width, classes)))


def resnet18(shape: Shape, classes: int, norm: str = "instance") -> nn.Module:
    """Return torchvision's ResNet-18 with the small-image stem (3x3, stride 1, no pooling)."""
    from torchvision.models import resnet

    _check("resnet18", shape, smallest=9)  # below, the last norm would see a single pixel per channel

    def norm_layer(c: int) -> nn.Module:
        return NORMS[norm](c, 0, 0)

    module = resnet.ResNet(resnet.BasicBlock, [2, 2, 2, 2], num_classes=classes, norm_layer=norm_layer)
    module.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    module.maxpool = nn.Identity()
    return Headed(module)


def mobilenet_v3_small(shape: Shape, classes: int) -> nn.Module:
    """Return torchvision's MobileNetV3-Small (Howard et al., ICCV 2019), which shrinks images by 8 instead of 32.

    Its batch norms average over about the last ten steps instead of a hundred, since training on a set takes a few
    hundred.
    """
    from torchvision.models import mobilenet_v3_small as make
    from torchvision.ops import SqueezeExcitation

    _check("mobilenet-v3-small", shape, smallest=9)  # below, the last norm would see a single pixel per channel
    module = make(num_classes=classes, dropout=0.0, norm_layer=nn.BatchNorm2d)
    stem = module.features[0]
    stem[0] = nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)  # stride 1 instead of 2
    nn.init.kaiming_normal_(stem[0].weight, mode="fan_out")
    depthwise = module.features[1].block[0][0]
    depthwise.stride = (1, 1)
    for block in module.modules():
        if isinstance(block, SqueezeExcitation):
            block.scale_activation = HardSigmoid()
    return Headed(module)


class HardSigmoid(nn.Module):
    """`nn.Hardsigmoid`, which has no second derivative in torch, written so that it has one."""

    def forward(self, x: Tensor) -> Tensor:
        """Return clip(x / 6 + 1 / 2, 0, 1)."""
        return F.relu6(x + 3) / 6


def vit_small(shape: Shape, classes: int) -> nn.Module:
    """Return torchvision's vision transformer (Dosovitskiy et al., ICLR 2021): patches of 4, width 128, 6 layers.

    Its head starts as linear layers do, not from zero: an untrained one has logits and gradients that carry
    information.
    """
    from torchvision.models import VisionTransformer

    patch = 4
    _check("vit-small", shape, smallest=8)
    channels, height, width = shape
    if height != width or height % patch:
        raise SettingError(
            f"vit-small needs squares whose side is a multiple of {patch}, these images are {height}x{width}; "
            f"take resnet18, or resize them"
        )
    module = VisionTransformer(height, patch, 6, 4, 128, 256, num_classes=classes)
    module.conv_proj = nn.Conv2d(channels, 128, patch, stride=patch)
    module.heads.head.reset_parameters()
    return Headed(PlainAttention(module))


class PlainAttention(nn.Module):
    """A module whose attention is computed as written: the fused kernels have no second derivative.

    `sdpa_kernel` would do it for all threads of the process, so attention is replaced in this thread, while it trains.
    An evaluation takes torch's fast path, whatever modes a caller has entered.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        """Return what the module returns."""
        is_fast = not (self.training or torch.is_grad_enabled() or torch.is_autocast_enabled())
        with torch._C.DisableTorchFunction() if is_fast else _AsWritten():
            return cast(Tensor, self.module(images))


class _AsWritten(TorchFunctionMode):
    """Computes self-attention from its formula, in this thread alone."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.multi_head_attention_forward:
            return func(*args, **(kwargs or {}))
        tokens, _, _, width, heads, weight, bias = args[:7]  # (L, N, D)
        out_weight, out_bias = args[11:13]
        length, number, _ = tokens.shape
        parts = F.linear(tokens, weight, bias).unflatten(-1, (3, width)).movedim(-2, 0).contiguous()
        query, key, value = (part.view(length, number, heads, -1).permute(1, 2, 0, 3) for part in parts)
        scale = math.sqrt(1 / math.sqrt(query.shape[-1]))  # of either side: torch's own mathematics rounds so
        wide = torch.promote_types(parts.dtype, torch.float32)
        query, key, value = (part.to(wide) for part in (query, key, value))
        with torch.autocast(tokens.device.type, enabled=False):  # and takes all digits at any precision
            mixed = ((query * scale) @ (key.mT * scale)).softmax(-1) @ value
        mixed = mixed.to(parts.dtype)
        return F.linear(mixed.permute(2, 0, 1, 3).reshape(length, number, width), out_weight, out_bias), None


def _check(name: str, shape: Shape, smallest: int) -> None:
    """Refuse images that a network would shrink to nothing."""
    height, width = shape[1:]
    if min(height, width) < smallest:
        raise SettingError(
            f"{name} needs images of {smallest}x{smallest} or more, these are {height}x{width}; "
            f"take mlp or a ConvNet, such as convnet2-w32"
        )

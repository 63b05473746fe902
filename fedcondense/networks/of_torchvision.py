"""torchvision's classifiers by their names there, without weights, for small images and any number of channels."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from torch import nn

from fedcondense.errors import SettingError
from fedcondense.networks.convnet import Shape

__all__ = ["PREFIX", "TorchvisionNetwork", "torchvision_network"]

PREFIX = "torchvision:"
_SMALL = 64  # pixels: below, a stem that shrinks images by four leaves too little
_MOST_WEIGHTS = 50_000_000  # names come from files and servers, too


@dataclass(frozen=True)
class TorchvisionNetwork:
    """A classifier of torchvision, untrained.

    Its first convolution takes the images' channels, and below 64 pixels moves by one; the pooling behind a ResNet's is
    left out there, as in our ``resnet18``. Batch norms and dropout stay as they are.

    Args:
        name: As `torchvision.models.get_model` takes it.
    """

    name: str

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        """Build it for images (C, H, W)."""
        from torchvision.models import get_model

        sized = {"image_size": shape[1]} if self.name.startswith("vit_") else {}
        module: nn.Module = get_model(self.name, weights=None, num_classes=classes, **sized)
        name, stem = next((name, m) for name, m in module.named_modules() if isinstance(m, nn.Conv2d))
        is_patches = stem.stride == stem.kernel_size
        is_small = min(shape[1:]) < _SMALL
        stride = 1 if is_small and not is_patches else stem.stride
        options = {"padding": stem.padding, "bias": stem.bias is not None}
        first = nn.Conv2d(shape[0], stem.out_channels, stem.kernel_size, stride, **options)  # type: ignore[arg-type]
        module.set_submodule(name, first)
        if is_small and isinstance(getattr(module, "maxpool", None), nn.MaxPool2d):
            module.maxpool = nn.Identity()
        return module

    def __repr__(self) -> str:
        return f"{PREFIX}{self.name}"


def torchvision_network(name: str) -> TorchvisionNetwork:
    """Return the network that ``torchvision:NAME`` names.

    Raises:
        SettingError: torchvision has no classifier of this name, or it has more than 50 million weights.
    """
    import torchvision.models

    called = name.removeprefix(PREFIX)
    known = torchvision.models.list_models(module=torchvision.models)
    if called not in known:
        close = [PREFIX + one for one in difflib.get_close_matches(called, known, n=5, cutoff=0.3)]
        raise SettingError(
            f"no network is called {name!r}; near: {', '.join(close)}; all: torchvision.models.list_models()"
        )
    weights = next(iter(torchvision.models.get_model_weights(called))).meta["num_params"]
    if weights > _MOST_WEIGHTS:
        raise SettingError(
            f"{name} has {weights / 1e6:.0f} million weights; taken by name: up to {_MOST_WEIGHTS / 1e6:.0f} million, "
            "and larger ones as a function that builds them"
        )
    return TorchvisionNetwork(called)

"""Networks of one's own: a function of the user's is called, and what it returns becomes a network of ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from fedcondense.arguments import called
from fedcondense.errors import FedcondenseError, SettingError
from fedcondense.networks.convnet import Shape
from fedcondense.networks.headed import Headed
from fedcondense.networks.trainable import remember_frozen

__all__ = ["made_by", "reads_features", "reason"]

_NEEDED = "needed: a function of an image shape (C, H, W) and a number of classes that returns a new nn.Module"


def made_by(make: Callable[[Shape, int], nn.Module], shape: Shape, classes: int) -> nn.Module:
    """Call a function of the user's, and return its module with readable features, on the CPU in single precision.

    Two blank images pass it: lazy weights get their shapes, its last layer is found, and what it returns is checked.

    Raises:
        SettingError: It builds no network for such images and classes.
    """
    name = called(make)
    try:
        module = make(shape, classes)
    except FedcondenseError:
        raise
    except Exception as error:
        raise SettingError(
            f"network {name} cannot be built for images of {shape} and {classes} classes ({reason(error)}); {_NEEDED}"
        ) from error
    if not isinstance(module, nn.Module):
        raise SettingError(f"network {name} returns a {type(module).__name__}; {_NEEDED}")
    module.float()
    if any(tensor.device.type not in ("cpu", "meta") for tensor in module.state_dict().values()):
        module.cpu()
    head = _pass(module, name, shape, classes)
    network = module if reads_features(module) else Headed(module, head)
    remember_frozen(network)
    return network


def reads_features(module: nn.Module) -> bool:
    """Say whether a module has a method ``features(images, layer)``; torchvision's `features` are layers."""
    features = getattr(module, "features", None)
    if features is None or isinstance(features, nn.Module) or not callable(features):
        return False
    try:
        given = list(inspect.signature(features).parameters.values())
    except (TypeError, ValueError):
        return True
    if any(p.kind is p.VAR_POSITIONAL for p in given):
        return True
    second = [p for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][1:2]
    return any(p.name == "layer" or p.default is p.empty or isinstance(p.default, str) for p in second)


def reason(error: Exception) -> str:
    """Return the first line of an error."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]:.300}"


@torch.no_grad()
def _pass(module: nn.Module, name: str, shape: Shape, classes: int) -> nn.Module | None:
    """Let blank images pass in evaluation mode, check the logits, and return the layer that makes them."""
    inputs: list[tuple[nn.Linear, object]] = []
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    hooks = [m.register_forward_hook(lambda m, _, out: inputs.append((cast(nn.Linear, m), out))) for m in linear]
    modes = [(m, m.training) for m in module.modules()]
    first = next(module.parameters(), None)
    blank = torch.zeros(2, *shape, dtype=torch.float32, device=None if first is None else first.device)
    try:
        module.eval()
        logits = module(blank)
    except FedcondenseError:
        raise
    except Exception as error:
        size = f"{shape[0]} channels and {shape[1]}x{shape[2]} pixels"
        raise SettingError(f"network {name} cannot take images of {size} ({reason(error)}); {_NEEDED}") from error
    finally:
        for m, mode in modes:
            m.training = mode
        for hook in hooks:
            hook.remove()
    check_logits(name, logits, 2, classes)
    last = [m for m, out in inputs if out is logits] or [m for m, _ in inputs if m.out_features == classes]
    last = last or [m for m, _ in inputs]
    return last[-1] if last else None


def check_logits(name: str, logits: object, images: int, classes: int) -> None:
    """Refuse what are no logits of some images.

    Raises:
        SettingError: It says what the network returns and what is needed.
    """
    if isinstance(logits, Tensor) and tuple(logits.shape) == (images, classes) and logits.is_floating_point():
        return
    given = f"a {type(logits).__name__}"
    if isinstance(logits, Tensor):
        given = f"{str(logits.dtype).removeprefix('torch.')} values of shape {tuple(logits.shape)}"
    raise SettingError(
        f"network {name} returns {given} for {images} images; needed: logits of {classes} classes, one float tensor "
        f"({images}, {classes})"
    )

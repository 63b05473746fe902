"""One module as a maker of many: each is a copy whose weights were drawn anew."""

from __future__ import annotations

import copy

from torch import nn

from fedcondense.errors import SettingError
from fedcondense.networks.convnet import Shape

__all__ = ["Anew"]


class Anew:
    """Builds copies of a module; each layer's weights are drawn by its own `reset_parameters`.

    Weights that are frozen stay. How the module's maker drew the others is not known here: a scheme of one's own needs
    the function or class that applies it.

    Args:
        module: Of which copies are made; it is left as it is.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.__name__ = type(module).__name__

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        """Return a copy with new weights.

        Raises:
            SettingError: A layer has weights that it cannot draw itself.
        """
        new = copy.deepcopy(self.module).cpu()
        for name, part in new.named_modules():
            own = list(part.parameters(recurse=False))
            if any(p.requires_grad for p in own):
                reset = getattr(part, "reset_parameters", None)
                if not callable(reset):
                    raise SettingError(
                        f"network is one module of {self.__name__}, whose {name or 'own weights'} "
                        f"({type(part).__name__}) cannot draw its weights anew (reset_parameters); give its class, or "
                        "a function of an image shape and a number of classes that builds it"
                    )
                reset()
            elif not own and callable(reset := getattr(part, "reset_running_stats", None)):
                reset()
        return new

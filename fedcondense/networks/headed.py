"""Any `nn.Module` that classifies images, as a network with readable features."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from fedcondense.errors import SettingError

__all__ = ["Headed"]


class Headed(nn.Module):
    """Any classifier as a network of ours: its features are the input of its last linear layer.

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
        """Return the classifier's input, (N, D), or logits (N, K).

        Raises:
            SettingError: The module does not return logits.
        """
        logits = self.module(images)
        if not (isinstance(logits, Tensor) and logits.ndim == 2):
            given = f"{tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise SettingError(f"{type(self.module).__name__} returns {given}; needed: logits, one tensor (N, K)")
        kept, self._kept = self._kept, None
        return logits if layer == "logits" else cast(Tensor, kept).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (N, K)."""
        return self.features(images, "logits")

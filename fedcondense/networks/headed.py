"""Any `nn.Module` that classifies images, as a network with readable features."""

from __future__ import annotations

from torch import Tensor, nn

from fedcondense.errors import SettingError
from fedcondense.networks.convnet import is_logits

__all__ = ["Headed"]


class Headed(nn.Module):
    """Any classifier as a network of ours: its features are the input of its last linear layer.

    Args:
        module: Maps (N, C, H, W) to logits (N, K).
        head: The layer whose input is read; None: the `nn.Linear` that was registered last, if there is one.
    """

    def __init__(self, module: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.module = module
        for last in [head] if head is not None else [m for m in module.modules() if isinstance(m, nn.Linear)][-1:]:
            last.register_forward_pre_hook(self._keep)
        self._kept: Tensor | None = None

    def _keep(self, head: nn.Module, inputs: tuple[Tensor]) -> None:
        self._kept = inputs[0]

    def features(self, images: Tensor, layer: str = "embedding") -> Tensor:
        """Return the classifier's input, (N, D), or logits (N, K).

        Raises:
            SettingError: The module does not return logits, or passes no linear layer; or the layer is neither
                ``"embedding"`` nor ``"logits"``.
        """
        wants_logits = is_logits(layer)
        logits = self.module(images)
        if not (isinstance(logits, Tensor) and logits.ndim == 2):
            given = f"{tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise SettingError(f"{type(self.module).__name__} returns {given}; needed: logits, one tensor (N, K)")
        kept, self._kept = self._kept, None
        if wants_logits:
            return logits
        if kept is None:
            raise SettingError(
                f"{type(self.module).__name__} calls no nn.Linear whose input would be its features; give it such a "
                f"classifier or a method features(images, layer)"
            )
        return kept.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (N, K)."""
        return self.features(images, "logits")

"""How sets are compared: protocols of evaluation by name, ours and that of the published tables."""

from __future__ import annotations

from dataclasses import dataclass

from fedcondense.errors import SettingError, look_up
from fedcondense.networks import default_network
from fedcondense.networks.convnet import Shape
from fedcondense.training.fit import Fit

__all__ = ["PROTOCOLS", "Protocol", "protocol_named", "protocol_of"]


@dataclass(frozen=True)
class Protocol:
    """What every network that tests a set has in common.

    Args:
        recipe: How it is trained on the set.
        width: Of the ConvNet that is taken where no network is named.
        deepest: How deep it is at most.
    """

    recipe: Fit
    width: int
    deepest: int = 4

    def network(self, shape: Shape) -> str:
        """Return the name of the ConvNet for images (C, H, W): of depth 3 for 28 and 32 pixels, of 4 for 64.

        From 96 pixels on it is of depth 5 where the protocol goes that deep.
        """
        if self.deepest > 4 and min(shape[1:]) >= _DEEP_FROM:
            return f"convnet5-w{self.width}"
        return default_network(shape, self.width)


_DEEP_FROM = 96  # pixels


PROTOCOLS: dict[str, Protocol] = {
    "short": Protocol(Fit(), width=32),
    "published": Protocol(Fit(epochs=1000, batch=256, lr=0.01, schedule="step", nesterov=False), 128, deepest=5),
}
"""``"short"`` is that of every table in `experiments/`; ``"published"`` that of DC, DSA and DM (Zhao, Mopuri and Bilen,
ICLR 2021, https://arxiv.org/abs/2006.05929, and the papers after it): a ConvNet of width 128 with instance norm, 1,000
passes in batches of 256, SGD with momentum 0.9 and weight decay 5e-4, its step size of 0.01 a tenth from half way, one
of DSA's operations an image and step, pixels normalised by the data's mean and standard deviation, the last step
counting. Its depth is 3 at 28 and 32 pixels, 4 at 64 (as later papers have it for Tiny ImageNet) and 5 at 128 (as MTT
for subsets of ImageNet, https://arxiv.org/abs/2203.11932); that of ``"short"`` is 4 at 128, too.

Their code passes once more, and begins with fresh momentum at half way. By its arithmetic a
network takes about 10 times as long as by ``"short"`` at 10 images, 50 at 100, and 250 at 500."""


def protocol_named(protocol: str | Protocol) -> Protocol:
    """Return the protocol of a name.

    Raises:
        SettingError: There is none of this name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if not isinstance(protocol, str):
        raise SettingError(f"protocol {protocol!r:.100}; needed: a Protocol, or one of {', '.join(PROTOCOLS)}")
    return look_up("protocol", protocol, PROTOCOLS)


def protocol_of(recipe: Fit) -> str:
    """Return the name of the protocol that trains so, or ``"own"``.

    >>> protocol_of(Fit()), protocol_of(Fit(steps=50))
    ('short', 'own')
    """
    return next((name for name, one in PROTOCOLS.items() if one.recipe == recipe), "own")

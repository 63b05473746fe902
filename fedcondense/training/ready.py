"""A set to a network that can be used: trained on all of it, with its classes and normalisation."""

from __future__ import annotations

import torch

from fedcondense.ambient import in_own_state
from fedcondense.data.images import Data, Spec
from fedcondense.networks import NetworkMaker, default_network, describe
from fedcondense.networks.card import NetworkCard
from fedcondense.networks.saved import SavedNetwork
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import train_on
from fedcondense.training.fit import Fit

__all__ = ["train"]


@in_own_state
def train(
    synthetic: SyntheticSet,
    *,
    network: str | NetworkMaker | None = None,
    recipe: Fit = Fit(),
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> SavedNetwork:
    """Train a network on a set, and return it with the set's classes and normalisation.

    About 10 s of one CPU core at width 32 and 28x28.

    Args:
        synthetic: The set.
        network: A name in `NETWORKS`, or a function of an image shape and a number of classes that builds a module;
            None: as the image size asks.
        recipe: How to train.
        seed: Weights, batches and augmentation.
        device: Where.

    Raises:
        SettingError: The network cannot be trained on the set.

    Example:
        >>> import fedcondense as fc
        >>> synthetic = fc.condense("digits", ipc=1, steps=2)
        >>> network = fc.train(synthetic, recipe=fc.Fit(steps=2))
        >>> network.predict(synthetic.pixels().images).shape
        torch.Size([10])
    """
    record, chosen = synthetic.record, network or default_network(synthetic.shape)
    spec = Spec(synthetic.name, synthetic.shape, synthetic.classes, record.mean, record.std)
    like = Data(torch.empty(0, *spec.shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), spec)
    trained = train_on(synthetic, like, network=chosen, recipe=recipe, seed=seed, device=device)
    name = chosen if isinstance(chosen, str) else describe(chosen)
    return SavedNetwork(trained, NetworkCard(name, spec.classes, spec.shape, spec.mean, spec.std, "set"))

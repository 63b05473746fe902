"""Networks of all ages at a time, each trained on the synthetic set for a step whenever it was used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fedcondense.contract import Draw, NetworkFactory, NetworkSource, Synthetic
from fedcondense.data.augment import Augmentation
from fedcondense.networks.passes import repeatable
from fedcondense.networks.trainable import freeze, unfreeze
from fedcondense.randomness import draw_seed
from fedcondense.training.fit import autocast_of_caller

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["OnlineTrained"]


class OnlineTrained(NetworkSource):
    """A few networks that are trained on the synthetic set while it changes: one step for each use, as in FRePo.

    A network that was used takes its step at the next draw, on the set as it is then. After `age` steps a new one
    takes its place; ages start staggered, so that networks of all ages serve at any time.

    Args:
        build: Builds a network from a seed.
        operations: What the siamese augmentation may do; training on the set does not augment.
        classes: Rows of its record.
        size: Networks; 10 as published.
        age: Training steps before a network is replaced; 100 as published.
        lr: Adam's step size; 3e-4 as published, for networks of 128 to 512 channels.
        batch: The most synthetic images that a training step takes.
    """

    trains_in_place = True

    def __init__(
        self,
        build: NetworkFactory,
        operations: tuple[str, ...],
        classes: int,
        size: int = 10,
        age: int = 100,
        lr: float = 3e-4,
        batch: int = 1000,
    ) -> None:
        self.build, self.operations, self.classes = build, operations, classes
        self.size, self.age, self.lr, self.batch = size, age, lr, batch
        self.ages = [age * k // size for k in range(size)]
        self.served: int | None = None
        self.seeds: dict[int, int] = {}
        self._networks: dict[int, torch.nn.Module] = {}
        self._optimizers: dict[int, torch.optim.Adam] = {}

    def draw(self, generator: torch.Generator, synthetic: Synthetic, data: Data | None) -> Draw:
        """Train the network that served last for a step, and hand out any of them."""
        if self.served is not None:
            self._train(self.served, generator, synthetic)
        number = int(torch.randint(self.size, (), generator=generator))
        if number not in self._networks or self.ages[number] >= self.age:
            if number in self._networks:
                self.ages[number] = 0
            self.seeds[number] = draw_seed(generator)
            self._place(number, self.build(self.seeds[number]).to(synthetic.images.device))
        self.served = number
        network = freeze(self._networks[number])
        return Draw(network, Augmentation.draw(self.operations, self.classes, generator), draw_seed(generator))

    def state_dict(self) -> dict[str, Any]:
        """Return the ages, and weights and moments of each network."""
        networks = {
            k: {
                "seed": self.seeds[k],
                "weights": dict(network.state_dict()),
                "moments": self._optimizers[k].state_dict()["state"],
            }
            for k, network in self._networks.items()
        }
        return {"ages": list(self.ages), "served": self.served, "networks": networks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Rebuild the networks and take their weights and moments."""
        self.ages, self.served = list(state["ages"]), state["served"]
        self.seeds, self._networks, self._optimizers = {}, {}, {}
        for k, kept in state["networks"].items():
            self.seeds[k] = kept.get("seed", 0)  # older states lack it
            network = self.build(self.seeds[k])
            network.load_state_dict(kept["weights"])
            self._place(k, network.to(next(iter(kept["weights"].values())).device))
            groups = self._optimizers[k].state_dict()["param_groups"]
            self._optimizers[k].load_state_dict({"state": kept["moments"], "param_groups": groups})

    def _place(self, number: int, network: torch.nn.Module) -> None:
        self._networks[number] = network
        self._optimizers[number] = torch.optim.Adam(network.parameters(), lr=self.lr)

    def _train(self, number: int, generator: torch.Generator, synthetic: Synthetic) -> None:
        """Take a step down the squared error of centred targets, which the regression on features predicts, too."""
        index = torch.randperm(len(synthetic.images), generator=generator)[: self.batch].to(synthetic.images.device)
        images, targets = synthetic.images.detach()[index], synthetic.targets.detach()[index]
        network = unfreeze(self._networks[number])
        passing = repeatable(network, self.seeds[number], self.ages[number])
        with autocast_of_caller(images.device), passing:
            logits = network(images)
        error = (logits.float() - (targets - 1 / targets.shape[1])).square().sum(1).mean() / 2
        self._optimizers[number].zero_grad(set_to_none=True)
        error.backward()
        self._optimizers[number].step()
        self.ages[number] += 1

"""Where a step's network comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedcondense.contract import Draw, NetworkFactory, NetworkSource, Synthetic
from fedcondense.data.augment import Augmentation
from fedcondense.deadline import check_time
from fedcondense.errors import SettingError
from fedcondense.randomness import child_seed, draw_seed, stream
from fedcondense.training.fit import Fit, autocast_of_caller, fit, fit_on

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["AgedPool", "Fresh", "NoNetwork", "Online", "Pool", "RealTrained", "Trained"]


class Fresh(NetworkSource):
    """A new untrained network and a new augmentation each step, as distribution matching is published.

    Args:
        build: Builds a network from a seed.
        operations: What the siamese augmentation may do; empty: nothing.
        classes: Rows of its record.
    """

    def __init__(self, build: NetworkFactory, operations: tuple[str, ...], classes: int) -> None:
        self.build, self.operations, self.classes = build, operations, classes

    def draw(self, generator: torch.Generator, synthetic: Synthetic, data: Data | None) -> Draw:
        """Draw a network, an augmentation for each class and a seed."""
        network = self.build(draw_seed(generator)).to(synthetic.images.device).requires_grad_(False)
        augment = Augmentation.draw(self.operations, self.classes, generator)
        return Draw(network, augment, draw_seed(generator))


class NoNetwork(NetworkSource):
    """Draws without a network, for objectives that know images by a kernel.

    Args:
        build: Not used.
        operations: What the siamese augmentation may do.
        classes: Rows of its record.
    """

    def __init__(self, build: NetworkFactory, operations: tuple[str, ...], classes: int) -> None:
        self.operations, self.classes = operations, classes

    def draw(self, generator: torch.Generator, synthetic: Synthetic, data: Data | None) -> Draw:
        """Draw an augmentation for each class and a seed."""
        return Draw(None, Augmentation.draw(self.operations, self.classes, generator), draw_seed(generator))


class Pool(NetworkSource):
    """A number of frozen draws that come again and again, so that what the real data say to each is asked once.

    Entry i follows from the pool's seed and i alone: whoever knows the seed has the same pool, and nothing but the
    number of steps is needed to resume.

    Args:
        build: Builds a network from a seed.
        operations: What the siamese augmentation may do.
        classes: Rows of its record.
        size: Entries; each pass takes them in a new order.
        seed: The pool's own seed; None: the first draw decides.
    """

    def __init__(
        self,
        build: NetworkFactory,
        operations: tuple[str, ...],
        classes: int,
        size: int = 96,
        seed: int | None = None,
    ) -> None:
        self.fresh, self.size, self.seed = Fresh(build, operations, classes), size, seed
        self.taken = 0
        self._entries: dict[int, Draw] = {}

    def draw(self, generator: torch.Generator, synthetic: Synthetic, data: Data | None) -> Draw:
        """Return the next entry; its key is (seed, number)."""
        if self.seed is None:
            self.seed = draw_seed(generator)
        turn, place = divmod(self.taken, self.size)
        order = torch.randperm(self.size, generator=stream(self.seed, "order", turn))
        self.taken += 1
        number = int(order[place])
        if number not in self._entries:
            entry = self._entry(stream(self.seed, "entry", number), synthetic, data)
            augment = entry.augment.to(synthetic.images.device)
            self._entries[number] = entry._replace(augment=augment, key=(self.seed, number))
        return self._entries[number]

    def _entry(self, generator: torch.Generator, synthetic: Synthetic, data: Data | None) -> Draw:
        return self.fresh.draw(generator, synthetic, None)

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and how many draws were taken."""
        return {"seed": self.seed, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after as many draws of the same pool."""
        self.seed, self.taken = state["seed"], state["taken"]


class AgedPool(Pool):
    """A pool of networks that were trained on the real data, each for a number of steps drawn by chance, 0 to `age`.

    It sees the data where they are: not for holders that hand out sums alone, or that promise privacy.

    Args:
        build: Builds a network from a seed.
        operations: What the siamese augmentation may do, and the one that training draws from.
        classes: Rows of its record.
        size: Entries; each pass takes them in a new order.
        seed: The pool's own seed; None: the first draw decides.
        age: The most training steps, of 64 real images each.
    """

    def __init__(
        self,
        build: NetworkFactory,
        operations: tuple[str, ...],
        classes: int,
        size: int = 96,
        seed: int | None = None,
        age: int = 200,
    ) -> None:
        super().__init__(build, operations, classes, size, seed)
        self.age = age

    def _entry(self, generator: torch.Generator, synthetic: Synthetic, data: Data | None) -> Draw:
        if data is None:
            raise SettingError("networks are to be trained on the real data, which their holder keeps; take `Pool`")
        entry = super()._entry(generator, synthetic, data)
        steps = int(torch.randint(self.age + 1, (), generator=generator))
        recipe = replace(_ON_REAL, steps=steps)
        seed = child_seed(entry.seed, "age")
        _train_on(data, entry.network, recipe, seed, self.fresh.operations, lambda *_: check_time())
        return entry


class Trained(NetworkSource):
    """A network that is trained on the synthetic set between two steps, as gradient matching is published.

    Args:
        build: Builds a network from a seed.
        operations: What the siamese augmentation may do, and the one that training draws from.
        classes: Rows of its record.
        outer: Steps before a new network is drawn; None: as published for the images per class of the set.
        epochs: Passes over the set between two of them; None: as published.
    """

    def __init__(
        self,
        build: NetworkFactory,
        operations: tuple[str, ...],
        classes: int,
        outer: int | None = None,
        epochs: int | None = None,
    ) -> None:
        self.build, self.operations, self.classes = build, operations, classes
        self.outer, self.epochs = outer, epochs
        self.seed, self.age = 0, 0
        self.network: torch.nn.Module | None = None

    def draw(self, generator: torch.Generator, synthetic: Synthetic, data: Data | None) -> Draw:
        """Train the network at hand on the set, or draw a new one if it was used `outer` times."""
        outer, epochs = published_loops(len(synthetic.images) // max(1, len(synthetic.by_class())))
        outer, epochs = self.outer or outer, self.epochs if self.epochs is not None else epochs
        if self.network is None or self.age >= outer:
            self.seed, self.age = draw_seed(generator), 0
            self.network = self.build(self.seed).to(synthetic.images.device)
        elif epochs:
            batch = min(256, len(synthetic.images))
            steps = epochs * -(-len(synthetic.images) // batch)
            recipe = Fit(steps=steps, batch=batch, lr=0.01, momentum=0.0, schedule="constant")
            images, targets = synthetic.images.detach(), synthetic.targets.detach()
            seed = child_seed(self.seed, self.age)
            fit(self.network, images, targets, recipe, seed=seed, operations=self.operations)
        self.age += 1
        self.network.requires_grad_(False)
        return Draw(self.network, Augmentation.draw(self.operations, self.classes, generator), draw_seed(generator))

    def state_dict(self) -> dict[str, Any]:
        """Return the network's seed, uses and weights."""
        weights = {} if self.network is None else dict(self.network.state_dict())
        return {"seed": self.seed, "age": self.age, "weights": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Rebuild the network from its seed and take its weights."""
        self.seed, self.age = state["seed"], state["age"]
        self.network = None
        if state["weights"]:
            self.network = self.build(self.seed)
            self.network.load_state_dict(state["weights"])
            self.network.to(next(iter(state["weights"].values())).device)


class RealTrained(Trained):
    """A network that is trained on the real data between two steps, as in IDC.

    It sees the data where they are: not for holders that hand out sums alone, or that promise privacy.

    Args:
        build: Builds a network from a seed.
        operations: What the siamese augmentation may do, and the one that training draws from.
        classes: Rows of its record.
        outer: Steps before a new network is drawn; 100 as published.
        batches: Training steps of 64 real images between two of them; 31 as published for CIFAR, 8 for others.
        cutmix: As in `Fit`; 0.5 as published.
    """

    def __init__(
        self,
        build: NetworkFactory,
        operations: tuple[str, ...],
        classes: int,
        outer: int = 100,
        batches: int = 8,
        cutmix: float = 0.0,
    ) -> None:
        super().__init__(build, operations, classes, outer, epochs=0)
        self.batches, self.cutmix = batches, cutmix

    def draw(self, generator: torch.Generator, synthetic: Synthetic, data: Data | None) -> Draw:
        """Train the network at hand on images drawn from the data, or draw a new one if it was used `outer` times."""
        if data is None:
            raise SettingError("networks are to be trained on the real data, which their holder keeps; take `Trained`")
        draw = super().draw(generator, synthetic, data)
        if self.age > 1 and self.network is not None:
            recipe = replace(_ON_REAL, steps=self.batches, cutmix=self.cutmix)
            _train_on(data, self.network, recipe, child_seed(self.seed, self.age), self.operations)
        return draw


class Online(NetworkSource):
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
        network = self._networks[number].requires_grad_(False)
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
        network = self._networks[number].requires_grad_(True)
        with autocast_of_caller(images.device):
            logits = network(images)
        error = (logits.float() - (targets - 1 / targets.shape[1])).square().sum(1).mean() / 2
        self._optimizers[number].zero_grad(set_to_none=True)
        error.backward()
        self._optimizers[number].step()
        self.ages[number] += 1


_ON_REAL = Fit(batch=64, lr=0.01, nesterov=False, schedule="constant")


def _train_on(
    data: Data,
    network: torch.nn.Module,
    recipe: Fit,
    seed: int,
    operations: tuple[str, ...],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train a frozen network on real images, and leave it frozen."""
    if recipe.steps:
        fit_on(network, data, recipe, seed=seed, operations=operations, progress=progress)
        network.requires_grad_(False)


def published_loops(ipc: int) -> tuple[int, int]:
    """Return (steps a network, epochs between them) of the DC and DSA papers; between their values, interpolated.

    >>> published_loops(1), published_loops(10), published_loops(30)
    ((1, 1), (10, 50), (30, 20))
    """
    return max(1, ipc), round(float(np.interp(ipc, (1, 10, 20, 30, 40, 50), (1, 50, 25, 20, 15, 10))))

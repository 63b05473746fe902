"""Pools: a number of frozen draws that come again and again, so that the real data are asked once for each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fedcondense.ambient import in_own_state
from fedcondense.contract import Draw, NetworkFactory, NetworkSource, Synthetic
from fedcondense.deadline import check_time
from fedcondense.errors import SettingError
from fedcondense.randomness import child_seed, draw_seed, stream
from fedcondense.sources.trained import ON_REAL, train_on
from fedcondense.sources.untrained import Fresh

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["Pool", "TrainedPool"]


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
        """Return the next entry, in an order that follows from the seed; its key is (seed, number)."""
        if self.seed is None:
            self.seed = draw_seed(generator)
        turn, place = divmod(self.taken, self.size)
        order = torch.randperm(self.size, generator=stream(self.seed, "order", turn))
        self.taken += 1
        number = int(order[place])
        if number not in self._entries:
            self._entries[number] = self.entry(number, synthetic.images.device, data)
        return self._entries[number]

    @in_own_state
    def entry(self, number: int, device: torch.device | str = "cpu", data: Data | None = None) -> Draw:
        """Return an entry by its number: with equal seeds, the same at every site and at the server.

        Args:
            number: 0 up to `size` less one.
            device: Where its network is to be.
            data: The real data, for pools of networks that are trained on them.

        Raises:
            SettingError: The pool has no seed yet, or fewer entries.
        """
        if self.seed is None or not 0 <= number < self.size:
            raise SettingError(
                f"entry {number} of a pool of {self.size} with seed {self.seed}; needed: a seed, and a number from 0 "
                f"to {self.size - 1}"
            )
        entry = self._entry(stream(self.seed, "entry", number), torch.device(device), data)
        return entry._replace(augment=entry.augment.to(torch.device(device)), key=(self.seed, number))

    def _entry(self, generator: torch.Generator, device: torch.device, data: Data | None) -> Draw:
        return self.fresh.draw_on(device, generator)

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and how many draws were taken."""
        return {"seed": self.seed, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after as many draws of the same pool."""
        self.seed, self.taken = state["seed"], state["taken"]


class TrainedPool(Pool):
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

    def _entry(self, generator: torch.Generator, device: torch.device, data: Data | None) -> Draw:
        if data is None:
            raise SettingError("networks are to be trained on the real data, which their holder keeps; take `Pool`")
        entry = super()._entry(generator, device, data)
        steps = int(torch.randint(self.age + 1, (), generator=generator))
        recipe = replace(ON_REAL, steps=steps)
        seed = child_seed(entry.seed, "age")
        train_on(data, entry.network, recipe, seed, self.fresh.operations, lambda *_: check_time())
        return entry

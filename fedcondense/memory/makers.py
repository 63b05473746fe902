"""What makes the sets of a memory: a `Condenser`, or a `Selector` of real images as the control at equal bytes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fedcondense.arguments import device_of
from fedcondense.condensing import Progress, prepare, run
from fedcondense.condensing.starts import STARTS, from_memory_or
from fedcondense.contract import Objective, Parametrization, Recipe
from fedcondense.data.images import Data
from fedcondense.errors import SettingError, look_up
from fedcondense.networks import NetworkMaker
from fedcondense.objectives import OBJECTIVES
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.sets.selection import SELECTIONS, select_quietly
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["Condenser", "Maker", "Selector"]


class Maker(Protocol):
    """Makes a set of what is to be remembered; its classes are a memory's groups."""

    @property
    def per_image(self) -> int:
        """How many images it makes in the bytes of one."""

    def __call__(self, data: Data, ipc: int, seed: int, stored: Tensor) -> SyntheticSet:
        """Return a set with the bytes of `ipc` plain images for each class of the data.

        Args:
            data: New real images, and what a memory holds of the same classes.
            ipc: Byte budget per class, counted in uncompressed images.
            seed: All that is random follows from it.
            stored: (N,) bool, which of the data the memory holds.
        """


@dataclass(frozen=True)
class Condenser:
    """Condenses: the arguments of `condense`, as a value.

    Args:
        objective: A name in `OBJECTIVES`, or an objective. ``"mmd"`` was better where the final shares of classes are
            known: `strategies/condensed-replay`.
        parametrization: A name in `PARAMETRIZATIONS`, or a parametrization.
        network: A name in `NETWORKS`, or a function that builds a module; None: as the image size asks.
        steps: Optimisation steps; None: the recipe's.
        recipe: Optimizer, step size, schedule; None: the objective's own.
        start: A name in `STARTS`; None: the recipe's.
        precision: ``"bfloat16"``, ``"float16"`` or ``"float32"`` for features; None: as the caller's autocast says.
        prefixes: As in `condense`: for a memory whose `update` is ``"reservoir"``, which shrinks by leaving images out.
        device: Where to condense; None: where the images are, in a memory those that were added last.
        progress: As in `condense`.
    """

    objective: str | Objective = "dm-ridge"
    parametrization: str | Parametrization = "multi-formation"
    network: str | NetworkMaker | None = None
    steps: int | None = None
    recipe: Recipe | None = None
    start: str | None = None
    precision: str | None = None
    prefixes: bool = False
    device: str | None = None
    progress: Callable[[Progress], None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.precision not in (None, "float32", "bfloat16", "float16"):
            raise SettingError(f"precision {self.precision!r}; needed: 'float32', 'bfloat16', 'float16' or None")

    @property
    def per_image(self) -> int:
        """How many images it makes in the bytes of one."""
        return self._made_by().start_count(1)

    @property
    def shared(self) -> bool:
        """Whether images of its sets share codes."""
        return self._made_by().shared

    def __call__(self, data: Data, ipc: int, seed: int, stored: Tensor) -> SyntheticSet:
        """Condense; what is stored is the start of its classes, since a sample of a few images would lose much."""
        objective = (
            look_up("objective", self.objective, OBJECTIVES) if isinstance(self.objective, str) else self.objective
        )
        start = self.start or (self.recipe or objective.recipe).start
        device = device_of(self.device) if self.device else data.device
        half = getattr(torch, self.precision) if self.precision not in (None, "float32") else None
        precise = torch.autocast(device.type, half, enabled=half is not None, cache_enabled=False)
        with precise if self.precision else nullcontext():
            loop = prepare(
                data,
                ipc,
                self.objective,
                self.parametrization,
                network=self.network,
                seed=seed,
                steps=self.steps,
                start=from_memory_or(look_up("start", start, STARTS), stored),
                recipe=self.recipe,
                prefixes=self.prefixes,
                device=device,
            )
            return run(loop, progress=self.progress)

    def _made_by(self) -> Parametrization:
        kind = self.parametrization
        return look_up("parametrization", kind, PARAMETRIZATIONS)() if isinstance(kind, str) else kind


@dataclass(frozen=True)
class Selector:
    """Selects real images: the control at equal bytes.

    Args:
        method: A name in `SELECTIONS`.
    """

    method: str = "random"

    update: ClassVar[str] = "reservoir"  # a selection of a selection would be blurred or biased

    @property
    def per_image(self) -> int:
        """How many images it makes in the bytes of one."""
        return look_up("selection", self.method, SELECTIONS)[1].start_count(1)

    def __call__(self, data: Data, ipc: int, seed: int, stored: Tensor) -> SyntheticSet:
        """Select."""
        return select_quietly(data, ipc, self.method, seed)

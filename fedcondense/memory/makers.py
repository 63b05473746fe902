"""What makes the sets of a memory: a `Condenser`, or a `Selector` of real images as the control at equal bytes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fedcondense.arguments import device_of
from fedcondense.condensing import Loop, Progress, Start, prepare, run
from fedcondense.condensing.starts import FROM_MEMORY_OR_REAL, STARTS, from_memory_or
from fedcondense.contract import Objective, Parametrization, Recipe
from fedcondense.data.images import Data, Spec
from fedcondense.errors import SettingError, look_up
from fedcondense.memory.stored import blank
from fedcondense.networks import NetworkMaker, default_network, describe, network_kinds
from fedcondense.objectives import OBJECTIVES, recorded
from fedcondense.parametrizations import PARAMETRIZATIONS, Pixels
from fedcondense.sets.parts import Record
from fedcondense.sets.selection import SELECTIONS, select_quietly
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["Condenser", "Maker", "Selector", "as_large"]

_LOG = logging.getLogger(__name__)
_ENOUGH = (
    0.1  # the share of its steps from which on a set that was stopped is better than real images: `run` has it too
)


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
        max_seconds: When to stop, in seconds per call, which is once per experience; None: never. What was made until
            then is taken; of less than a tenth of the steps, real images in as many bytes in its place. The log is told
            of either. What it costs: `experiments/memories.md`.
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
    max_seconds: float | None = field(
        default=None, repr=False, compare=False
    )  # of the machine, not of what the sets are

    def __post_init__(self) -> None:
        if self.precision not in (None, "float32", "bfloat16", "float16"):
            raise SettingError(f"precision {self.precision!r}; needed: 'float32', 'bfloat16', 'float16' or None")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise SettingError(f"max_seconds {self.max_seconds!r}; needed: a number above 0, or None")

    def check(self) -> None:
        """Refuse names and numbers that cannot work with any data; a memory does so before the stream begins.

        Raises:
            SettingError: One of them.
        """
        objective = self._objective()
        recipe, _ = self.recipe or objective.recipe, self._made_by()
        start, steps = self.start or recipe.start, recipe.steps if self.steps is None else self.steps
        look_up("start", start, STARTS)
        if type(steps) is not int or steps < 0:
            raise SettingError(f"{steps} steps; give a whole number, 0 or more")
        if self.network is not None:
            network_kinds(self.network)
        if objective.learn_labels and objective.separable:
            raise SettingError(
                f"{objective!r} is taken class by class, and so are hard labels alone: set learn_labels=False"
            )

    @property
    def soft(self) -> bool:
        """Whether images of its sets have soft labels."""
        return self._objective().learn_labels

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
        device = device_of(self.device) if self.device else data.device
        half = getattr(torch, self.precision) if self.precision not in (None, "float32") else None
        precise = torch.autocast(device.type, half, enabled=half is not None, cache_enabled=False)
        start = look_up("start", self.start or (self.recipe or self._objective().recipe).start, STARTS)
        begin = partial(self._begin, data, ipc, seed, device)
        with precise if self.precision else nullcontext():
            if self.max_seconds is None:
                return run(begin(from_memory_or(start, stored)), progress=self.progress)
            until = time.monotonic() + self.max_seconds
            loop = begin(from_memory_or(start, stored))
            made = run(loop, progress=self.progress, until=until, least=0)
            if loop.done < loop.recipe.steps:
                _LOG.warning(
                    "condensing stopped after max_seconds=%g, at step %d of %d",
                    self.max_seconds,
                    loop.done,
                    loop.recipe.steps,
                )
            if loop.done < math.ceil(_ENOUGH * loop.recipe.steps):
                _LOG.warning("too few steps for a set worth having: real images take its place in this experience")
                made = begin(from_memory_or(STARTS["real"], stored)).finished()
        return made

    def blank(self, spec: Spec, ipc: int, counts: Sequence[int]) -> SyntheticSet:
        """Return a set of no content, as large in bytes as any that a call gives for classes and their records."""
        objective = self._objective()
        recipe = self.recipe or objective.recipe
        record = _largest_record(spec, recorded(objective), ipc, counts)
        network = describe(self.network or default_network(spec.shape))
        steps = recipe.steps if self.steps is None else self.steps
        record = replace(record, network=network, start=FROM_MEMORY_OR_REAL, steps=steps)
        return blank(self._made_by(), record, ipc, soft=objective.learn_labels)

    def _begin(self, data: Data, ipc: int, seed: int, device: torch.device, start: Start) -> Loop:
        return prepare(
            data,
            ipc,
            self.objective,
            self.parametrization,
            network=self.network,
            seed=seed,
            steps=self.steps,
            start=start,
            recipe=self.recipe,
            prefixes=self.prefixes,
            device=device,
        )

    def _objective(self) -> Objective:
        given = self.objective
        return look_up("objective", given, OBJECTIVES) if isinstance(given, str) else given

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

    def check(self) -> None:
        """Refuse a method that there is not."""
        look_up("selection", self.method, SELECTIONS)

    def blank(self, spec: Spec, ipc: int, counts: Sequence[int]) -> SyntheticSet:
        """Return a set of no content, as large in bytes as any that a call gives for classes and their records."""
        return blank(SELECTIONS[self.method][1], _largest_record(spec, self.method, ipc, counts), ipc)


def as_large(make: Maker, spec: Spec, ipc: int, counts: Sequence[int]) -> SyntheticSet:
    """Return a set as large in bytes as one that a maker makes; of one that has no `blank`, plain pixels.

    Args:
        make: The maker.
        spec: Of the data, with the groups for classes.
        ipc: Byte budget per class, counted in uncompressed images.
        counts: How many real images each group stands for.
    """
    if (own := getattr(make, "blank", None)) is not None:
        made: SyntheticSet = own(spec, ipc, counts)
        return made
    return blank(Pixels(), _largest_record(spec, "", ipc, counts), ipc)


def _largest_record(spec: Spec, method: str, ipc: int, counts: Sequence[int]) -> Record:
    """Return a record with the longest numbers that a set may come to have in it."""
    fields = (spec.name, spec.shape, spec.classes, spec.mean, spec.std, method, ipc, 2**63 - 1)
    return Record(*fields, augmentation=spec.operations, start="real", counts=tuple(counts), seconds=99999.9)

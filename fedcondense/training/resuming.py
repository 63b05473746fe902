"""An evaluation that was killed and is started again: networks that were tested, and the one in training, are kept."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fedcondense.checkpoints import Checkpoint
from fedcondense.data.augment import AUGMENTATIONS, own_among
from fedcondense.data.images import Data
from fedcondense.errors import OutputError
from fedcondense.identity import identity
from fedcondense.networks import NetworkMaker, describe, network_kinds
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.fit import Fit
from fedcondense.training.midway import Midway

__all__ = ["Kept", "follows_from", "keeping"]

_LOG = logging.getLogger(__name__)


class Kept:
    """What an evaluation has done, in a checkpoint if there is one.

    Args:
        checkpoint: Where; None: nothing is kept.
        configuration: What the numbers follow from.
    """

    def __init__(self, checkpoint: Checkpoint | None, configuration: dict[str, Any]) -> None:
        self._checkpoint, self._configuration = checkpoint, configuration
        state = (None if checkpoint is None else checkpoint.read(configuration)) or {}
        self._tested: dict[int, tuple[float, Tensor]] = {
            seed: (percent, classes) for seed, percent, classes in state.get("tested", [])
        }
        self._training: dict[str, Any] | None = state.get("training")
        self._began = time.monotonic() - float(state.get("seconds", 0.0))
        self._wrote = bool(state)

    def say(self, seeds: Sequence[int]) -> None:
        """Tell the log what is taken over for an evaluation of these seeds."""
        tested = [str(seed) for seed in seeds if seed in self._tested]
        parts = [f"the tested networks of seeds {', '.join(tested)}"] if tested else []
        if self._training is not None and self._training["seed"] in seeds:
            parts.append(f"step {self._training['state']['done']} of the network of seed {self._training['seed']}")
        if parts and self._checkpoint is not None:
            _LOG.warning("taken over from %s: %s", self._checkpoint.path, " and ".join(parts))

    @property
    def seconds(self) -> float:
        """How long it all took, what was taken over included."""
        return time.monotonic() - self._began

    def tested(self, seed: int) -> tuple[float, Tensor] | None:
        """Return the accuracy of a seed's network and those of its classes, in percent; None: it is to be trained."""
        return None if self._checkpoint is None else self._tested.get(seed)

    def midway(self, seed: int) -> Midway | None:
        """Return how the training of a seed's network is kept, and what it goes on from."""
        if self._checkpoint is None:
            return None
        before = self._training if self._training is not None and self._training["seed"] == seed else None

        def keep(state: Callable[[], dict[str, Any]]) -> None:
            if self._checkpoint is not None and self._checkpoint.is_due():
                self._training = {"seed": seed, "state": state()}
                self._write()

        return Midway(keep, None if before is None else before["state"])

    def add(self, seed: int, percent: float, classes: Tensor) -> None:
        """Note what a seed's network reached."""
        self._tested[seed] = percent, classes
        if self._training is not None and self._training["seed"] == seed:
            self._training = None
        if self._checkpoint is not None and (self._wrote or self._checkpoint.is_due()):
            self._write()

    def _write(self) -> None:
        assert self._checkpoint is not None
        tested = [[seed, percent, classes] for seed, (percent, classes) in self._tested.items()]
        state = {"tested": tested, "training": self._training, "seconds": self.seconds}
        try:
            self._checkpoint.write(self._configuration, state)
            self._wrote = True
        except OutputError as error:  # it serves another start alone: this one needs no disk
            _LOG.warning("%s; the evaluation goes on, and keeps nothing more", error)
            self._checkpoint = None


@contextmanager
def keeping(
    checkpoint: Checkpoint | None, configuration: Callable[[], dict[str, Any]], seeds: Sequence[int]
) -> Iterator[Kept]:
    """Have a checkpoint for the length of an evaluation, and say what is taken over from it.

    Raises:
        OutputError: Another evaluation has it, or its folder cannot be written.
        ResumeError: It is damaged or of another evaluation, and does not start anew.
    """
    if checkpoint is None:
        yield Kept(None, {})
        return
    with checkpoint.held():
        kept = Kept(checkpoint, configuration())
        kept.say(seeds)
        yield kept


def follows_from(
    synthetic: SyntheticSet,
    test: Data,
    network: str | NetworkMaker,
    recipe: Fit,
    weighted: bool,
    device: torch.device,
) -> dict[str, Any]:
    """Return what the accuracy of a seed's network follows from, its seed left out."""
    kind = device.type
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    operations = synthetic.record.augmentation or test.spec.operations
    return {
        "set": hashlib.sha256(SyntheticSet(synthetic.parts).to_bytes()).hexdigest(),
        "test data": test.fingerprint,
        "description of the test data": identity(test.spec),
        "network": describe(network),
        "code of the network": identity(network_kinds(network)),
        "code of the augmentation": identity([AUGMENTATIONS.get(name) for name in own_among(operations)]),
        "recipe": identity(recipe),
        "weighted": bool(weighted),
        "device": kind,
        "precision": str(precision),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }

"""Expert trajectories: the weights that networks passed through while they were trained on the real data."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from torch import Tensor, nn

from fedcondense.checksums import check_file, dump_tensors
from fedcondense.contract import Draw, NetworkFactory, NetworkSource, Recipe, Synthetic
from fedcondense.data.augment import Augmentation
from fedcondense.deadline import check_time
from fedcondense.errors import ResumeError, SettingError
from fedcondense.files import hold, write_file
from fedcondense.identity import identity
from fedcondense.networks.trainable import freeze, trainable
from fedcondense.progress import reporting
from fedcondense.randomness import batches, child_seed, draw_seed, stream
from fedcondense.training.fit import Fit, fit

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["Trajectories", "kept_in"]

_ROWS = 1024  # augmentations in a draw, of which each image of a batch takes one by chance
_AT_ONCE = 64  # training steps whose images are taken to floats together
_WRITE_S = 5.0  # seconds between two writes of a trajectory that is being trained


class Trajectories(NetworkSource):
    """Networks as they were at some moment of an expert's training, each with where it was `span` snapshots later.

    Experts are trained when a draw first asks for them, and only as far as it asks; one step of plain SGD with a
    constant step size is easier to imitate than a faster training, so that is what they take. They see the data where
    they are: not for holders that hand out sums alone, or that promise privacy. A snapshot costs `interval` training
    steps of `batch` images, which is most of what trajectory matching costs.

    With a `folder`, trajectories are kept there, one safetensors file an expert, for this run when it resumes and for
    all later ones on the same data and network. They are made of the data: keep them as safe as those.

    Args:
        build: Builds a network from a seed.
        operations: What training an expert draws augmentations from, and training on the synthetic set as well.
        classes: Not used.
        experts: How many; 100 as published.
        latest: The last snapshot that a draw may start from; 20 to 40 as published.
        span: Snapshots from start to goal; 2 as published.
        interval: Training steps between snapshots; an epoch as published.
        batch: Real images a training step; 256 as published.
        lr: The experts' step size; 0.01 as published.
        seed: Of the experts; None: the first draw decides, or 0 where there is a folder.
        folder: Where to keep trajectories; None: in memory.
        train: Whether what is missing may be trained; if not, it is an error.
    """

    def __init__(
        self,
        build: NetworkFactory,
        operations: tuple[str, ...],
        classes: int,
        experts: int = 4,
        latest: int = 8,
        span: int = 2,
        interval: int = 20,
        batch: int = 64,
        lr: float = 0.02,
        seed: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        train: bool = True,
    ) -> None:
        if min(experts, span, interval, batch) < 1 or latest < 0:
            raise SettingError(
                f"experts {experts}, span {span}, interval {interval}, batch {batch}, latest {latest}; needed: 1 or "
                "more of each, and latest 0 or more"
            )
        self.build, self.operations = build, operations
        self.experts, self.latest, self.span = experts, latest, span
        self.interval, self.batch, self.lr = interval, batch, lr
        self.seed = 0 if seed is None and folder is not None else seed
        self.folder, self.train = None if folder is None else Path(folder), train
        self._layouts: dict[int, str] = {}
        self._kept: dict[int, list[Tensor]] = {}  # snapshots of experts that have no file
        self._looks: dict[int, tuple[Any, int]] = {}  # at files that were sound, and how many snapshots they held

    def draw(self, generator: torch.Generator, synthetic: Synthetic, data: Data | None) -> Draw:
        """Pick an expert and a moment; the goal is its weights `span` snapshots later, (P,) float32."""
        if data is None:
            raise SettingError("experts are trained on the real data, which their holder keeps; take another objective")
        self._settle(generator)
        expert = int(torch.randint(self.experts, (), generator=generator))
        start = int(torch.randint(self.latest + 1, (), generator=generator))
        device = synthetic.images.device
        network = self.build(self._seed_of(expert))
        begin, goal = (weights.to(device) for weights in self.snapshots(expert, (start, start + self.span), data))
        network.to(device)
        _place(begin, network)
        augment = Augmentation.draw(self.operations, _ROWS, generator)
        return Draw(freeze(network), augment, draw_seed(generator), goal=goal)

    def train_first(self, generator: torch.Generator, data: Data, until: int | None = None) -> None:
        """Train the first expert as it would be trained when a draw asks.

        Args:
            generator: Of the draws.
            data: The real data.
            until: Its last snapshot; None: as far as any draw may ask.
        """
        self._settle(generator)
        self.snapshots(0, (self.latest + self.span if until is None else until,), data)

    def snapshots(self, expert: int, ages: tuple[int, ...], data: Data) -> list[Tensor]:
        """Return an expert's weights at some snapshots, (P,) float32 each, after training as far as that takes.

        Raises:
            ResumeError: A file is missing that may not be trained, damaged, or of other data, network or settings.
        """
        wanted, path = max(ages) + 1, self.path(expert)
        if path is None:
            kept = self._kept.setdefault(expert, [])
            if len(kept) < wanted:
                self._extend(expert, kept, wanted, data)
            return [kept[age] for age in ages]
        if self._length(path, expert, data) < wanted:
            if not self.train:
                raise ResumeError(
                    f"{path} holds no {wanted} snapshots, and none may be trained; train them first, or allow it"
                )
            with hold(path, wait=True):
                if self._length(path, expert, data) < wanted:  # else another run has trained it meanwhile
                    self._extend(expert, _read(path), wanted, data)
        with safetensors.safe_open(path, framework="pt") as file:
            rows = file.get_slice("weights")
            return [rows[age : age + 1][0] for age in ages]

    def path(self, expert: int) -> Path | None:
        """Return the file of an expert, or None where there is no folder."""
        return None if self.folder is None else self.folder / f"expert-{expert:03d}.safetensors"

    def configuration(self, expert: int, data: Data) -> dict[str, Any]:
        """Return what a trajectory depends on, and its file says."""
        return {
            "data": data.fingerprint,
            **{name: list(getattr(data.spec, name)) for name in ("mean", "std", "classes", "shape")},
            "network": self._layout(expert),
            "code of the network": identity(self.build),
            "seed": self.seed,
            "expert": expert,
            "interval": self.interval,
            "batch": self.batch,
            "lr": self.lr,
            "operations": list(self.operations),
        }

    def _length(self, path: Path, expert: int, data: Data) -> int:
        """Return how many snapshots a file holds; it is checked whole when it was changed since the last look."""
        if not path.exists():
            return 0
        found = path.stat()
        look = (found.st_ino, found.st_size, found.st_mtime_ns, data.fingerprint, data.spec)
        if self._looks.get(expert, (None, 0))[0] != look:
            self._looks[expert] = look, _checked_length(path, self.configuration(expert, data))
        return self._looks[expert][1]

    def _settle(self, generator: torch.Generator) -> None:
        if self.seed is None:
            self.seed = draw_seed(generator)

    def _seed_of(self, expert: int) -> int:
        return child_seed(int(self.seed or 0), "expert", expert)

    def _layout(self, expert: int) -> str:
        """Sixteen hex digits: equal for networks of equal layers and weights of equal names and shapes."""
        seed = self._seed_of(expert)
        if seed not in self._layouts:
            network = self.build(seed)
            layout = repr(network), [(name, list(p.shape)) for name, p in trainable(network).items()]
            self._layouts[seed] = hashlib.sha256(json.dumps(layout).encode()).hexdigest()[:16]
        return self._layouts[seed]

    def state_dict(self) -> dict[str, Any]:
        """Return the seed: the same experts follow from it, or are in the folder."""
        return {"seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the same experts."""
        self.seed = state["seed"]

    def _extend(self, expert: int, kept: list[Tensor], wanted: int, data: Data) -> None:
        """Train on from the last snapshot that is kept until there are as many as wanted."""
        with reporting(f"training expert {expert + 1} of {self.experts}") as report:
            self._train_on(expert, kept, wanted, data, report)

    def _train_on(self, expert: int, kept: list[Tensor], wanted: int, data: Data, report: Callable[..., None]) -> None:
        seed = self._seed_of(expert)
        network = self.build(seed).to(data.device)
        if kept:
            _place(kept[-1].to(data.device), network)
        else:
            kept.append(_vector(network))
        path, written = self.path(expert), time.monotonic()
        recipe = Fit(self.interval, self.batch, self.lr, momentum=0.0, weight_decay=0.0, schedule="constant")
        while len(kept) < wanted:
            age = len(kept)
            drawn = batches(len(data), self.batch, self.interval, stream(seed, "images", age))
            for k in range(0, self.interval, _AT_ONCE):  # as bytes the data are a quarter of what they are as floats
                images, targets = data.batch(torch.cat(drawn[k : k + _AT_ONCE]))
                steps = replace(recipe, steps=len(drawn[k : k + _AT_ONCE]))
                fit(
                    *(network, images, targets, steps),
                    seed=child_seed(seed, age, k),
                    operations=self.operations,
                    progress=lambda *_: check_time(),  # what is lost is trained again from the last snapshot
                )
            kept.append(_vector(network))
            report(age / (wanted - 1), f"snapshot {age}")
            if path is not None and (time.monotonic() - written > _WRITE_S or len(kept) == wanted):
                blob = dump_tensors({"weights": torch.stack(kept)}, "trajectory", self.configuration(expert, data))
                write_file(path, blob, overwrite=True)
                written = time.monotonic()


def kept_in(folder: str | os.PathLike[str], recipe: Recipe) -> Recipe:
    """Return a recipe whose trajectories are kept in a folder and taken from there.

    Raises:
        SettingError: The recipe has none.
    """
    source: Any = recipe.source
    if getattr(source, "func", source) is not Trajectories:
        raise SettingError("a folder of experts, but the objective has none; take one that matches trajectories: 'mtt'")
    return replace(recipe, source=partial(source, folder=folder))


def _vector(network: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(trainable(network).values()).detach().float().cpu()


def _place(weights: Tensor, network: nn.Module) -> None:
    nn.utils.vector_to_parameters(weights.clone(), trainable(network).values())  # which would become views of `weights`


def _read(path: Path) -> list[Tensor]:
    if not path.exists():
        return []
    with safetensors.safe_open(path, framework="pt") as file:
        return list(file.get_tensor("weights"))


def _checked_length(path: Path, configuration: dict[str, Any]) -> int:
    """Return how many snapshots a file holds; refuse one that is damaged, or not of this configuration."""
    try:
        check_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            told = dict(json.loads(file.metadata()["trajectory"]))
            length, _ = file.get_slice("weights").get_shape()
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise ResumeError(
            f"{path} is no trajectory of this version, or is damaged ({error}); delete it and it is trained again"
        ) from None
    differs = [
        f"{name} was {told.get(name)!r:.200}, is {value!r:.200}"
        for name, value in configuration.items()
        if told.get(name) != value
    ]
    if differs:
        raise ResumeError(f"{path} is of another run: {'; '.join(differs)}; name another folder for these experts")
    return int(length)

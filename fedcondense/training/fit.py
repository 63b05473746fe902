"""Training a classifier on tensors: the only loop of ours that does, and the test of what came out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcondense.ambient import in_own_state
from fedcondense.data.augment import Augmentation, own_among
from fedcondense.errors import DataError, SettingError
from fedcondense.networks.passes import repeatable
from fedcondense.networks.trainable import unfreeze
from fedcondense.plain import whole_number
from fedcondense.progress import counted
from fedcondense.randomness import stream
from fedcondense.training.graphs import captured, is_plain
from fedcondense.training.midway import Midway, go_on, state_of
from fedcondense.training.mixing import cutmix, draw_box

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["Fit", "accuracy", "autocast_of_caller", "fit", "fit_on", "of_network"]


@dataclass(frozen=True)
class Fit:
    """How a classifier is trained; the defaults are the evaluation of every table in `experiments/`.

    The published evaluation of the field is ``PROTOCOLS["published"].recipe``. Methods that store several images in
    the bytes of one are published with ``cutmix=0.5``.

    Args:
        steps: Optimisation steps.
        batch: Images a step, drawn without replacement until all were seen.
        lr: Largest step size.
        momentum: SGD's.
        weight_decay: SGD's.
        nesterov: Whether the momentum looks ahead.
        schedule: ``"one-cycle"`` (15 % warm-up, cosine to zero), ``"step"`` (a tenth from half way), ``"constant"``.
        augment: Draw one augmentation an image and step.
        cutmix: How likely the images of a step get a rectangle of each other, and its share of their targets (Yun et
            al., ICCV 2019, https://arxiv.org/abs/1905.04899); augmentations are drawn without cutout then.
        epochs: Passes over the images in the place of `steps`, which is 0 then; 0: as `steps` says.
    """

    steps: int = 400
    batch: int = 64
    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True
    schedule: str = "one-cycle"
    augment: bool = True
    cutmix: float = 0.0
    epochs: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in _SCHEDULES:
            raise SettingError(f"schedule {self.schedule!r}; needed: one of {', '.join(_SCHEDULES)}")
        for name, least in (("steps", 0), ("batch", 1), ("epochs", 0)):
            object.__setattr__(self, name, whole_number(getattr(self, name), name, least))
        if self.epochs:
            object.__setattr__(self, "steps", 0)
        for name in ("lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise SettingError(f"{name} {value!r}; needed: a finite number from 0")
        if not 0 <= self.cutmix <= 1:
            raise SettingError(f"cutmix {self.cutmix}; needed: a probability, from 0 to 1")

    def steps_on(self, images: int) -> int:
        """Return how many steps are taken on so many images.

        >>> Fit(epochs=1000, batch=256).steps_on(images=500), Fit(steps=400).steps_on(images=500)
        (2000, 400)
        """
        return self.epochs * -(-images // self.batch) if self.epochs else self.steps


_WARM_UP = 0.15
_WORTH_A_GRAPH = 100  # steps; a capture runs four of them
_Backward = Callable[["_Given"], Tensor]


class _Given(NamedTuple):
    """What is drawn for a step: a graph's own tensors have the same shapes."""

    places: Tensor  # (B,) int64, of images
    choice: Tensor  # of an augmentation
    amounts: Tensor
    partners: Tensor  # (B,) int64, of a batch's images: those a rectangle is cut from
    box: Tensor  # (4,) int64: its first row and column, and those behind its last

    def to(self, device: torch.device) -> _Given:
        """Return it on a device, without a wait."""
        return _Given(*(t.to(device, non_blocking=True) for t in self))


def _one_cycle(done: float) -> float:
    if done < _WARM_UP:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * done / _WARM_UP)) / 2
    return (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))) / 2


_SCHEDULES: dict[str, Callable[[float], float]] = {
    "one-cycle": _one_cycle,
    "step": lambda done: 1.0 if done < 0.5 else 0.1,
    "constant": lambda done: 1.0,
}


@counted("training a network")
@in_own_state
def fit(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    recipe: Fit = Fit(),
    *,
    seed: int = 0,
    weights: Tensor | None = None,
    operations: tuple[str, ...] = (),
    progress: Callable[[int, int], None] | None = None,
    midway: Midway | None = None,
) -> None:
    """Train a network in place, on the device of the images, with the cross-entropy of soft or hard targets.

    On a GPU, many steps of a network of torch's, torchvision's or our modules alone are replayed as a CUDA graph.

    Args:
        network: Maps images to logits (N, K); moved to the images' device. What its maker froze stays frozen.
        images: (N, C, H, W), floating point, normalised.
        targets: (N, K) probabilities.
        recipe: Steps, batch, step size and schedule.
        seed: Determines batches and augmentation.
        weights: (N,), how much each image counts, of any scale; None: all the same.
        operations: The augmentations to draw from, if the recipe augments.
        progress: Called with (step, steps) after each step.
        midway: Who keeps the training, and what it goes on from; passed over where a module is neither torch's,
            torchvision's nor ours: its weights may not be all that it holds.
    """
    if not len(images):
        raise SettingError("no images to train on; give at least one")
    generator = stream(seed, "fit")
    network.to(images.device).train()
    if not any(p.requires_grad for p in unfreeze(network).parameters()):
        raise SettingError(f"all weights of {type(network).__name__} are frozen; needed: some that can be trained")
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov and recipe.momentum > 0,
    )
    if weights is not None:
        targets = targets * (weights / weights.mean()).unsqueeze(1)
    if not recipe.augment:
        operations = ()
    if recipe.cutmix:
        operations = tuple(name for name in operations if name != "cutout")

    def backward(given: _Given) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        batch, wanted = images[given.places], targets[given.places]
        if operations:
            batch = Augmentation(given.choice, given.amounts, own_among(operations))(batch)
        if recipe.cutmix:
            batch, wanted = cutmix(batch, wanted, given.partners, given.box)
        with autocast_of_caller(images.device), repeatable(network, seed, step):
            logits = network(batch)
        loss = F.cross_entropy(logits.float(), wanted, reduction="none").mean()
        loss.backward()
        return loss

    run: _Backward = backward
    order, steps = torch.empty(0, dtype=torch.int64, device="cpu"), recipe.steps_on(len(images))
    begin, midway = 0, midway if is_plain(network) else None
    if midway is not None and midway.state is not None:
        begin, order = go_on(midway.state, network, optimizer, generator)
    for step in range(begin, steps):
        optimizer.param_groups[0]["lr"] = recipe.lr * _SCHEDULES[recipe.schedule](step / steps)
        while len(order) < min(recipe.batch, len(images)):
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        index, order = order[: recipe.batch], order[recipe.batch :]
        augment = Augmentation.draw(operations, len(index), generator)
        given = _Given(index, augment.choice, augment.amounts, *draw_box(recipe.cutmix, images, len(index), generator))
        given = given.to(images.device)
        if step == begin and images.device.type == "cuda" and steps >= _WORTH_A_GRAPH and is_plain(network):
            run = _replayed(network, backward, given)
        run(given)
        optimizer.step()
        if midway is not None:
            midway.keep(partial(state_of, step + 1, order, network, optimizer, generator))
        if progress is not None:
            progress(step + 1, steps)
    optimizer.zero_grad(set_to_none=True)  # a graph's gradients would keep its memory


@in_own_state
def fit_on(
    network: nn.Module,
    data: Data,
    recipe: Fit,
    *,
    seed: int = 0,
    operations: tuple[str, ...] = (),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train a network on as many real images as the steps take, drawn by chance; they are held as float32 meanwhile."""
    index = torch.randperm(len(data), generator=stream(seed, "images"))
    images, targets = data.batch(index[: recipe.batch * recipe.steps_on(len(data))])
    fit(network, images, targets, recipe, seed=seed, operations=operations, progress=progress)


def _replayed(network: nn.Module, backward: _Backward, given: _Given) -> _Backward:
    """Return `backward` as a CUDA graph on tensors of its own; as it is, if that cannot be."""
    own = _Given(*(t.clone() for t in given))
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    replay = captured(lambda: backward(own), own.places.device)
    with torch.no_grad():
        for buffer, value in before:  # a batch norm has met the batches of the rehearsal
            buffer.copy_(value)
    if replay is None:
        return backward

    def again(drawn: _Given) -> Tensor:
        for mine, theirs in zip(own, drawn, strict=True):
            mine.copy_(theirs)
        return replay()

    return again


def autocast_of_caller(device: torch.device) -> torch.autocast:
    """Heed a caller's autocast, but not its cache: while weights train, that would keep those of the first step."""
    return torch.autocast(device.type, enabled=torch.is_autocast_enabled(device.type), cache_enabled=False)


def of_network(progress: Callable[[int, int], None] | None, k: int, networks: int) -> Callable[[int, int], None] | None:
    """Return what the k-th of several networks calls with (step, steps), to tell how far all of them are."""
    if progress is None:
        return None
    return lambda step, steps: progress(k * steps + step, networks * steps)


@in_own_state
@torch.no_grad()
def accuracy(network: nn.Module, data: Data) -> tuple[float, Tensor]:
    """Test a network, in evaluation mode.

    Returns:
        Accuracy in percent, and (K,) float32 in percent for each class, nan for a class without examples.

    Raises:
        DataError: There is nothing to test on.
    """
    if not len(data):
        raise DataError(f"{data.spec.name}: no images to test on; give a test part, or data that have one")
    training = network.training
    network.eval()
    classes = len(data.spec.classes)
    correct = torch.zeros(classes, dtype=torch.float32, device=data.device)
    for k, piece in enumerate(torch.arange(len(data), device="cpu").split(1000)):
        batch = data.batch(piece)
        labels = data.labels[piece.to(data.device)]
        with repeatable(network, 0, k):
            right = network(batch.images)[:, :classes].argmax(1) == labels
        correct += torch.bincount(labels, weights=right.float(), minlength=classes)
    network.train(training)
    counts = data.counts.to(data.device)
    return float(100 * correct.sum() / counts.sum()), (100 * correct / counts).cpu()

"""The pieces that plug into each other: objectives, network sources, parametrizations and holders of real data.

Nothing here knows a method. A method is a frozen dataclass that derives from `Objective` (or `FeatureObjective`), a way
to store images is one that satisfies `Parametrization`; both are values, keep no state, and print as their own recipe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fedcondense.data.augment import Augmentation
from fedcondense.data.images import Batch, Data, Spec
from fedcondense.errors import SettingError

__all__ = [
    "Batch",
    "Codes",
    "Draw",
    "Holder",
    "Keeps",
    "Network",
    "NetworkFactory",
    "NetworkSource",
    "Objective",
    "Parametrization",
    "Recipe",
    "Synthetic",
    "index_by_class",
]

Codes = dict[str, Tensor]


class Synthetic(NamedTuple):
    """The leaf tensors of a step: all synthetic images, or a group of classes."""

    images: Tensor  # (N, C, H, W), normalised, requires a gradient
    targets: Tensor  # (N, K) probabilities; requires a gradient only where labels are learned
    extras: Mapping[str, Tensor] = {}  # what else an objective learns, by the names that `Objective.extras` gave
    of_class: Mapping[int, Tensor] | None = None  # what `by_class` returns, where labels stay as they are

    def by_class(self) -> Mapping[int, Tensor]:
        """Return the indices of each class's images, ascending; without `of_class`, this waits for the device."""
        return index_by_class(self.targets) if self.of_class is None else self.of_class


class Network(Protocol):
    """A classifier whose features can be read; every entry of `NETWORKS` and every wrapped `nn.Module` is one."""

    def features(self, images: Tensor, layer: str = "embedding") -> Tensor:
        """Return flattened features, (N, D); ``"embedding"`` feeds the classifier, ``"logits"`` leaves it."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits, (N, K)."""


Keeps = Literal["sums", "rows", "gradients", "records", "nothing"]
"""What is kept of the real data: class sums of feature rows; feature rows of single records; gradients of a class's
records; records, perhaps augmented; or nothing, where a network was trained on them instead."""

NetworkFactory = Callable[[int], nn.Module]
"""Builds a network from a seed: equal seeds give equal weights on every machine."""


class Draw(NamedTuple):
    """All that is random in a step; what follows is a pure function of it."""

    network: Any  # a Network; None for kernels
    augment: Augmentation  # one record with a row for each class, the same for the real and the synthetic branch
    seed: int  # for the real batch, inner batches, frequencies
    key: Hashable | None = None  # names a draw that comes again; None: it never does
    goal: Any = None  # where an expert ended


class NetworkSource(ABC):
    """Where a step's network comes from: fresh, trained on the synthetic set, frozen into a pool."""

    trains_in_place: ClassVar[bool] = False  # between steps, so that `state_dict` does not bring a draw back

    @abstractmethod
    def draw(self, generator: torch.Generator, synthetic: Synthetic, data: Data | None) -> Draw:
        """Pick this step's network; what trains between two steps does so here, before it is handed out."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as tensors, numbers and nested dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 (most sources keep nothing)
        """Take what `state_dict` returned."""


class Holder(Protocol):
    """Whoever answers for the real data: their owner, or a stand-in that hands out sums or noisy sums alone.

    Condensing reads nothing else of the real data.
    """

    @property
    def spec(self) -> Spec:
        """What the images are."""

    @property
    def counts(self) -> Tensor:
        """How many records each class has, (K,) int64 on the CPU: a class without any gets no image."""

    @property
    def device(self) -> torch.device:
        """Where answers are, and where condensing runs."""

    @property
    def fingerprint(self) -> str:
        """A short text that is equal for equal answers: a checkpoint belongs to it."""

    @property
    def data(self) -> Data | None:
        """The records, for starts and networks made of them; None where nobody may see one."""

    def observe(self, objective: Objective, draw: Draw) -> Any:
        """Return what `objective.observe` would of the real data for `draw`; the same answer for the same key.

        Raises:
            SettingError: The holder does not give what the objective keeps.
        """


@dataclass(frozen=True)
class Recipe:
    """How an objective is run unless the caller says otherwise; the numbers: `experiments/one-holder.md`.

    Args:
        steps: Optimisation steps.
        lr: Step size, in [0, 1] pixel space.
        source: Builds the network source from a network factory and the augmentation's operations.
        optimizer: ``"adam"`` or ``"sgd"``.
        betas: Adam's, or (momentum, unused) for SGD.
        decay: The last step size as a share of the first, reached along a cosine; 1 keeps it constant.
        start: The name in `STARTS` that research code begins from.
        normalised: `lr` is for normalised images: it is multiplied by the variance of a pixel.
        lr_extras: Step size of what an objective learns beside the codes (`Objective.extras`); None: `lr`.
        lr_per_image: Multiply `lr` by ipc, for losses of class means whose gradient per image shrinks with ipc.
        clip: Largest gradient norm of all codes together; None leaves it alone.
        clip_growth: The same as a multiple of the running mean of norms, which takes a tenth of each; 2 in RaT-BPTT.
    """

    steps: int
    lr: float
    source: Callable[[NetworkFactory, tuple[str, ...], int], NetworkSource]
    optimizer: str = "adam"
    betas: tuple[float, float] = (0.9, 0.99)
    decay: float = 0.1
    start: str = "gaussian"
    normalised: bool = False
    lr_extras: float | None = None
    lr_per_image: bool = False
    clip: float | None = None
    clip_growth: float | None = None


class Objective(ABC):
    """How real and synthetic data are compared; derive a frozen dataclass, whose repr goes into the record."""

    recipe: ClassVar[Recipe]
    keeps: ClassVar[Keeps] = "records"  # what `observe` returns, for holders that hand out less than everything
    separable: ClassVar[bool] = True  # a sum over classes: with hard labels, classes may be taken in groups
    second_order: ClassVar[bool] = False  # gradients of the network are themselves differentiated
    siamese: bool = True  # both branches are augmented alike; a field where it is a choice
    learn_labels: bool = False  # targets are learned, too, and stay probabilities; a field where it is a choice

    @abstractmethod
    def observe(self, draw: Draw, data: Data) -> Any:
        """Return all that a step needs of the real data, without a gradient: sums, gradients, a batch, or None."""

    @abstractmethod
    def loss(self, draw: Draw, observed: Any, synthetic: Synthetic) -> Tensor:
        """Return the scalar to minimise, differentiable in `synthetic`; a class that is absent adds zero."""

    def one_number(self, loss: Tensor) -> Tensor:
        """Return a loss that can be minimised.

        Raises:
            SettingError: It is no tensor, or one of several numbers.
        """
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise SettingError(
                f"{type(self).__name__} gives {given} for its loss; needed: one number as a tensor, such as "
                "(real - synthetic).square().sum()"
            )
        return loss

    def extras(self) -> dict[str, Tensor]:
        """Return where the objective's own learnable tensors start; none by default."""
        return {}

    def backward(self, draw: Draw, observed: Any, synthetic: Synthetic, at_once: int) -> Tensor:
        """Add the gradients of `loss` to the leaves, with about `at_once` images in a graph; return the loss.

        A separable objective takes groups of whole classes, which bounds memory at the same speed; the others build one
        graph of everything.
        """
        groups = [synthetic]
        if self.separable and len(synthetic.images) > at_once:
            groups = _by_class(synthetic, at_once)
        total = synthetic.images.new_zeros(())
        for group in groups:
            loss = self.one_number(self.loss(draw, observed, group))
            if loss.requires_grad:  # a group whose classes the real data lack says nothing
                loss.backward()
            total = total + loss.detach()
        return total


@torch.no_grad()
def index_by_class(targets: Tensor) -> dict[int, Tensor]:
    """Return the indices of each class's hard targets (N, K), int64 on their device, by ascending class."""
    labels = targets.argmax(1)
    found, sizes = labels.unique(return_counts=True)
    return dict(zip(found.tolist(), labels.argsort(stable=True).split(sizes.tolist()), strict=True))


def _by_class(synthetic: Synthetic, at_once: int) -> list[Synthetic]:
    """Split hard-labelled leaves into groups of whole classes of at most `at_once` images (or one class)."""
    groups: list[dict[int, Tensor]] = []
    filled = at_once
    for c, index in synthetic.by_class().items():
        if filled + len(index) > at_once:
            groups.append({})
            filled = 0
        groups[-1][c] = index
        filled += len(index)
    return [_only(synthetic, group) for group in groups]


def _only(synthetic: Synthetic, group: Mapping[int, Tensor]) -> Synthetic:
    """Return the images of some classes alone."""
    index = torch.cat(list(group.values()))
    places = torch.arange(len(index), device=index.device).split([len(images) for images in group.values()])
    images, targets = (leaf.index_select(0, index) for leaf in synthetic[:2])
    return Synthetic(images, targets, synthetic.extras, dict(zip(group, places, strict=True)))


class Parametrization(Protocol):
    """How a set's images are stored: a frozen dataclass of settings with pure functions on a dict of tensors.

    `settings` are its fields; the header of a file holds them with the name in `PARAMETRIZATIONS`.
    """

    storage: ClassVar[Mapping[str, torch.dtype]]  # what is kept, and as what: first what has a row for each target;
    # uint8 stands for [0, 1]
    shared: ClassVar[bool]  # some codes serve all images: a set cannot be cut by rows, but is condensed again

    def start_count(self, ipc: int) -> int:
        """Return how many images the bytes of `ipc` plain images decode to; each has a start image."""

    def shapes(self, count: int, shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the codes for `count` start images of `shape`, all classes together.

        They take no more bytes than the plain images in whose place they are, whatever is shared included.

        Raises:
            SettingError: They cannot; the message says what to change.
        """

    def encode(self, images: Tensor, targets: Tensor) -> tuple[Codes, Tensor]:
        """Return codes and their targets (M, K) for start images (N, C, H, W) in [0, 1], N a class first to last.

        The same images give the same codes; what is random has a seed of its own.
        """

    def decode(self, codes: Codes, targets: Tensor) -> Batch:
        """Return images in [0, 1] and targets: the same codes, the same images; differentiable in both.

        Images of one stored image follow each other.
        """

    def project(self, codes: Codes) -> None:
        """Put the codes back into their range, in place; called after each step."""

    def decoded(self, shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, int, int]) -> int:
        """Return how many images of `shape` codes of these shapes decode to, or raise ValueError: they do not fit."""

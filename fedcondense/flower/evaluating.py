"""What a site says of a network: its right answers on records that the site keeps apart, and how good it is alone."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcondense.ambient import in_own_state
from fedcondense.contract import Holder
from fedcondense.data import Data
from fedcondense.deadline import check_time
from fedcondense.errors import OutputError, SettingError, UntrustedSetError
from fedcondense.flower.caps import Cost
from fedcondense.flower.contract import Job, Node, Task
from fedcondense.flower.payloads import Sums, Weights
from fedcondense.flower.replies import check_normalisation
from fedcondense.flower.settings import number
from fedcondense.flower.untrusted import for_images
from fedcondense.flower.wire import own_version
from fedcondense.identity import identity
from fedcondense.networks import build, default_network
from fedcondense.networks.passes import repeatable
from fedcondense.randomness import child_seed
from fedcondense.training.fit import Fit, fit_on

__all__ = ["Evaluate", "check_sums", "numbers_of", "train_alone"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us
_AT_ONCE = 200  # images in a forward pass
_MOST = 1 << 20  # classes that one network has, or lacks


@dataclass(frozen=True)
class Evaluate(Task[Sums]):
    """Count what a network calls right among the records that a site keeps apart (``keep-apart`` of its config).

    The answer holds int32 tensors: ``counts`` and ``right``, (K,), by class of the network; ``others``, (M,), the
    records of each class that the network lacks, which count as wrong; and ``alone``, (1,), how many records a network
    calls right that the site trained by itself. ``loss``, (1,) float32, is the mean cross-entropy of the ``counts``. It
    leaves only if the node's config says ``allow-weights = true``: crafted weights can make it spell out a record.

    Args:
        weights: Of the network. They can be crafted: a node asks for ``allow-evaluate = true``, or ``allow-weights``.
        classes: The names of its outputs, in order.
        network: A name in `NETWORKS`; empty: the one for the images' size.
        mean: What images are normalised by, one value per channel; empty: as the node does.
        std: Likewise.
        alone: Steps for which a site trains a network on its own records alone, to compare with; 0: it trains none.
        seed: The root seed; each node trains its own from a child of it.
    """

    weights: Weights = Weights({})
    classes: tuple[str, ...] = ()
    network: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    alone: int = number(0, 0)
    seed: int = number(0, 0)

    name: ClassVar[str] = "evaluate_weights"
    leaves: ClassVar[str] = "how many of the records kept apart the network is right about, by class"
    payload: ClassVar[type[Sums]] = Sums
    evaluates: ClassVar[bool] = True

    def prepare(self, holder: Holder, node: Node) -> Job[Sums]:
        """Build the network and hold the weights to it.

        Raises:
            SettingError: The node keeps nothing apart, or a field is wrong.
            UntrustedSetError: The weights are of another network.
        """
        apart = node.apart
        if apart is None or not len(apart):  # a server knows this reason by "keep-apart = 0.1", and asks no more
            raise SettingError(
                f"{node.name} keeps no records apart to evaluate on; let its config say keep-apart = 0.1, or a larger "
                "share where classes are small"
            )
        if not self.classes:
            raise SettingError("the question names no classes, in the order of the network's outputs; name them")
        node.caps.check_steps(self.alone)
        network = self.network or default_network(apart.spec.shape)
        node.caps.check_networks([network])
        with for_images(apart.spec.shape):
            model = self.weights.load_into(build(network, apart.spec.shape, len(self.classes), 0))
        spec = replace(apart.spec, mean=self.mean or apart.spec.mean, std=self.std or apart.spec.std)
        check_normalisation(spec.mean, spec.std)

        def run() -> Sums:
            found = _count(model.to(apart.device), Data(apart.images, apart.labels, spec), self.classes)
            tensors = {"counts": found.counts, "right": found.right, "others": found.others}
            if self.alone:
                tensors["alone"] = torch.tensor([self._right_alone(holder, node, apart, network)], dtype=torch.int32)
            if node.caps.allow_weights and math.isfinite(found.loss):
                tensors["loss"] = torch.tensor([found.loss], dtype=torch.float32)
            return Sums(tensors)

        nbytes = 4 * (2 * len(self.classes) + len(_lacking(apart, self.classes)) + 2) + _HEADER
        held = min(int(holder.counts.sum()), self.alone * Fit.batch)  # images as float32, while a network is trained
        memory = 4 * held * math.prod(apart.spec.shape)
        return Job(Cost(steps=self.alone, nbytes=nbytes, memory=memory, networks=(network,)), run)

    def _right_alone(self, holder: Holder, node: Node, apart: Data, network: str) -> int:
        """Return how many records kept apart a network calls right that saw this site's alone; it is trained once."""
        data = holder.data
        if data is None:
            raise SettingError("a network is trained on records, which this node's holder does not hand out; alone = 0")
        recipe = Fit(steps=self.alone)
        told = (data.fingerprint, data.spec, apart.fingerprint, network, recipe, self.seed, node.place, own_version())
        name = f"alone.{hashlib.sha256(identity(told).encode()).hexdigest()[:32]}"
        blob = None if node.kept is None else node.kept.get(name)
        if blob is not None and blob.isdigit() and int(blob) <= len(apart):
            return int(blob)
        model = train_alone(data, network, recipe, node.seed(self.seed, "alone"))
        right = int(_count(model, apart, apart.spec.classes).right.sum())
        if node.kept is not None:
            try:
                node.kept.put(name, str(right).encode())
            except (OutputError, SettingError) as error:
                _LOG.warning("how good %s is alone is not kept, and found out again: %s", node.name, error)
        return right


_HEADER = 512  # bytes of names and shapes beside an answer's numbers, at most


@in_own_state
def train_alone(data: Data, network: str, recipe: Fit = Fit(), seed: int = 0) -> nn.Module:
    """Train a network from scratch on a site's records alone: what a federation has to beat at that site.

    It takes the recipe that a server trains by, whose defaults are those of every table; some 10 s of one CPU core at
    28x28.

    Args:
        data: The site's.
        network: A name in `NETWORKS`.
        recipe: How it is trained.
        seed: Of weights, batches and augmentation.
    """
    model = build(network, data.spec.shape, len(data.spec.classes), child_seed(seed, "network")).to(data.device)
    operations = data.spec.operations
    fit_on(model, data, recipe, seed=seed, operations=operations, progress=lambda step, steps: check_time())
    return model


class _Counted(NamedTuple):
    counts: Tensor  # (K,) int32, records by class of the network
    right: Tensor  # (K,) int32
    others: Tensor  # (M,) int32, records by class that the network lacks
    loss: float  # mean cross-entropy over `counts`; nan without any


@in_own_state
@torch.no_grad()
def _count(network: nn.Module, data: Data, classes: Sequence[str]) -> _Counted:
    """Count right answers by class of the network; labels are matched by the names of classes."""
    places = {name: place for place, name in enumerate(classes)}
    to = torch.tensor([places.get(name, -1) for name in data.spec.classes], device=data.device)
    labels = to[data.labels]
    known = (labels >= 0).nonzero().flatten()
    network.eval()
    right = torch.zeros(len(classes), dtype=torch.int64, device=data.device)
    loss = torch.zeros((), dtype=torch.float64, device=data.device)
    for k, index in enumerate(known.split(_AT_ONCE)):
        check_time()
        with repeatable(network, 0, k):
            logits = network(data.batch(index).images)[:, : len(classes)].float()
        wanted = labels[index]
        right += torch.bincount(wanted[logits.argmax(1) == wanted], minlength=len(classes))
        loss += F.cross_entropy(logits, wanted, reduction="sum").double()
    counts = torch.bincount(labels[known], minlength=len(classes))
    mean = float(loss) / len(known) if len(known) else math.nan
    others = torch.tensor(_lacking(data, classes), dtype=torch.int32)
    return _Counted(counts.cpu().int(), right.cpu().int(), others, mean)


def _lacking(data: Data, classes: Sequence[str]) -> list[int]:
    """Return how many records there are of each class that is not among these."""
    known = set(classes)
    return [n for name, n in zip(data.spec.classes, data.counts.tolist(), strict=True) if n and name not in known]


def check_sums(sums: Sums, classes: int) -> None:
    """Check an answer to `Evaluate` of unknown origin.

    Raises:
        UntrustedSetError: It cannot be one, for a network of so many classes.
    """
    tensors = sums.tensors
    if not {"counts", "right", "others"} <= set(tensors) <= {"counts", "right", "others", "alone", "loss"}:
        raise UntrustedSetError("an evaluation without 'counts', 'right' and 'others', or with more than them")
    shapes = {"counts": (classes,), "right": (classes,), "alone": (1,), "loss": (1,)}
    for name, value in tensors.items():
        if value.dtype != (torch.float32 if name == "loss" else torch.int32) or bool((value < 0).any()):
            raise UntrustedSetError(f"an evaluation whose {name!r} is {value.dtype}, or below 0")
        if value.ndim != 1 or value.numel() > _MOST or (name in shapes and tuple(value.shape) != shapes[name]):
            raise UntrustedSetError(f"an evaluation whose {name!r} is of shape {tuple(value.shape)}")
    total = int(tensors["counts"].sum() + tensors["others"].sum())
    alone = int(tensors["alone"]) if "alone" in tensors else 0
    if not total or bool((tensors["right"] > tensors["counts"]).any()) or alone > total:
        raise UntrustedSetError("an evaluation of no records, or with more right answers than records")


def numbers_of(sums: Sums) -> dict[str, float]:
    """Return what an answer to `Evaluate` comes to.

    Returns:
        ``num-examples``; in percent ``accuracy`` and ``macro-accuracy``, the mean over the classes that the site has
        records of; where the answer says so, ``loss`` and ``local-only``, the accuracy of the site's own network.
    """
    tensors: Mapping[str, Tensor] = sums.tensors
    counts, right = tensors["counts"].long(), tensors["right"].long()
    total, held = int(counts.sum() + tensors["others"].sum()), counts > 0
    shares = torch.cat([right[held].double() / counts[held], torch.zeros(len(tensors["others"]), dtype=torch.float64)])
    found = {
        "num-examples": total,
        "accuracy": 100 * int(right.sum()) / total,
        "macro-accuracy": 100 * float(shares.mean()),
    }
    if "loss" in tensors:
        found["loss"] = float(tensors["loss"])
    if "alone" in tensors:
        found["local-only"] = 100 * int(tensors["alone"]) / total
    return found

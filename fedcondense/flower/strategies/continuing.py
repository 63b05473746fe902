"""A site's round of SGD from the global network's weights: anchors beside its records, or a cure of missing classes.

A site that lacks classes unlearns them: the softmax of its records pushes their logits down. Anchors, synthetic images
of all classes, stand beside its records in each step. The cures that cost no byte change the loss on its records:

- balanced softmax (Ren et al., NeurIPS 2020, https://arxiv.org/abs/2007.10740): logits are raised by ``strength`` times
  the logarithm of how often a step sees their class, so that no site teaches the network its own shares;
- restricted softmax (FedRS: Li and Zhan, KDD 2021): logits of classes that the site lacks count by a share;
- calibrated logits (FedLC: Zhang et al., ICML 2022, https://arxiv.org/abs/2209.00189): a logit is lowered by
  ``strength`` / (records of its class) ** 0.25, which takes classes without records out of the softmax;
- a proximal term (FedProx: Li et al., MLSys 2020, https://arxiv.org/abs/1812.06127).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcondense.ambient import in_own_state
from fedcondense.contract import Batch, Holder
from fedcondense.data import Data
from fedcondense.data.augment import Augmentation
from fedcondense.deadline import check_time
from fedcondense.errors import SettingError, look_up
from fedcondense.flower.caps import Cost
from fedcondense.flower.contract import Job, Node, Task
from fedcondense.flower.eight_bits import Feedback, Packed, packed_bytes
from fedcondense.flower.payloads import Weights
from fedcondense.flower.settings import later, number
from fedcondense.flower.strategies.features import carried
from fedcondense.networks.passes import repeatable
from fedcondense.randomness import stream
from fedcondense.sets.format import Limits
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import batch_for
from fedcondense.training.fit import autocast_of_caller

__all__ = ["LOSSES", "NO_ANCHORS", "Continue", "LocalSteps", "train_beside"]


class Seen(NamedTuple):
    """What a site's steps see of each class, (K,) each, on its device."""

    counts: Tensor  # records
    prior: Tensor  # float32, the share of records and anchors together, as their losses weigh them


class Adjusted(NamedTuple):
    """What becomes of logits (N, K) before the softmax: a function of them, of what is seen, and of a strength."""

    of: Callable[[Tensor, Seen, float], Tensor]
    anchors_too: bool = False  # whether those of anchors are adjusted as well


def _softmax(logits: Tensor, seen: Seen, strength: float) -> Tensor:
    return logits


def _balanced(logits: Tensor, seen: Seen, strength: float) -> Tensor:
    return logits + strength * seen.prior.clamp_min(torch.finfo(torch.float32).tiny).log()


def _restricted(logits: Tensor, seen: Seen, strength: float) -> Tensor:
    return torch.where(seen.counts > 0, logits, strength * logits)


def _calibrated(logits: Tensor, seen: Seen, strength: float) -> Tensor:
    lowered = logits - strength * seen.counts.clamp_min(1).to(logits.dtype).pow(-0.25)
    return lowered.masked_fill(seen.counts == 0, float("-inf"))


LOSSES: dict[str, Adjusted] = {
    "softmax": Adjusted(_softmax),
    "balanced": Adjusted(_balanced, anchors_too=True),
    "restricted": Adjusted(_restricted),
    "calibrated": Adjusted(_calibrated),
}
"""How logits are adjusted before the softmax, by name."""


@dataclass(frozen=True)
class LocalSteps:
    """How a site trains between two rounds: SGD that starts anew each round, on augmented images.

    Args:
        lr: Step size at the start of a round.
        lr_end: What share of it is left at the round's last step; it falls linearly. 1: it stays.
        epochs: Passes over the site's records per round.
        batch: Records per step.
        momentum: SGD's.
        weight_decay: SGD's.
        anchor_batch: Anchors per step. 32 at a weight of 0.25 were as good as 64 at 0.5, on held-out images of
            Fashion-MNIST (85.9 and 86.0 after two rounds), and take three quarters of the time.
        anchor_weight: What their loss counts, of 1; the records' counts the rest.
        loss: A name in `LOSSES`; without anchors it decides most (measured in experiments/anchored.md).
        strength: Of that loss. Restricted: the share of logits of missing classes, as published 0.5. Calibrated and
            balanced: what logarithms or roots are multiplied by, as published 1.
        proximal_mu: Weight of half the squared distance to the weights that came.
        augment: Whether records are augmented; anchors, which are few, are in any case. Off by default: in two rounds
            it took 0.4 to 0.7 points on held-out images of Fashion-MNIST.
    """

    lr: float = number(0.03, 0)
    lr_end: float = later(1.0, 0, 1)
    epochs: int = number(1, 1)
    batch: int = number(64, 1)
    momentum: float = number(0.9, 0, 1)
    weight_decay: float = number(5e-4, 0)
    anchor_batch: int = number(32, 1)
    anchor_weight: float = number(0.25, 0, 1)
    loss: str = "balanced"
    strength: float = number(1.0, 0)
    proximal_mu: float = number(0.0, 0)
    augment: bool = False


NO_ANCHORS = "keeps the anchors no more: send them again"
"""How the reason of a node ends that has lost what was sent to it."""

_NONE = Packed()


@dataclass(frozen=True)
class Continue(LocalSteps, Task[Packed]):
    """Train the global network on a site's records, with anchors beside them; what changed comes back at eight bits.

    Args:
        lr: As in `LocalSteps`.
        lr_end: As in `LocalSteps`.
        epochs: As in `LocalSteps`.
        batch: As in `LocalSteps`.
        momentum: As in `LocalSteps`.
        weight_decay: As in `LocalSteps`.
        anchor_batch: As in `LocalSteps`.
        anchor_weight: As in `LocalSteps`.
        loss: As in `LocalSteps`.
        strength: As in `LocalSteps`.
        proximal_mu: As in `LocalSteps`.
        augment: As in `LocalSteps`.
        weights: Of the global network. They can be crafted: a node asks for ``allow-weights = true``.
        anchors: Synthetic images; they come once, and a node keeps them. None: it has them already, or there are none.
        anchored: The SHA-256 of the anchors' file; empty: there are none.
        classes: The names of the network's outputs, in order.
        mean: What images are normalised by, a number per channel.
        std: Likewise.
        network: A name in `NETWORKS`; empty: the one for the images' size.
        seed: The run's; each node and round draws from a child of it.
        round: Of the run.
    """

    weights: Packed = _NONE
    anchors: SyntheticSet | None = None
    anchored: str = ""
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    network: str = ""
    seed: int = number(0, 0)
    round: int = number(1, 1)

    name: ClassVar[str] = "continue"
    leaves: ClassVar[str] = "how a network's weights change by training on the records"
    payload: ClassVar[type[Packed]] = Packed

    def prepare(self, holder: Holder, node: Node) -> Job[Packed]:
        """Read weights and anchors, keep these, and return a round of SGD."""
        data, network, model, came = carried(self, holder, node)
        anchors = self._anchors(data, node)

        def run() -> Packed:
            came.load_into(model.to(data.device))
            train_beside(model, data, anchors, self, stream(self.seed, "anchored", node.place, self.round))
            feedback = Feedback(node.kept, ("anchored", self.seed, network, data.spec, data.fingerprint), self.round)
            trained, error = Weights.of(model).tensors, feedback.before(model)
            names = [name for name, _ in model.named_parameters()]
            change = {name: trained[name] - came.tensors[name] + error.get(name, 0) for name in names}
            packed = Packed.of({**trained, **change}, model)
            sent = packed.weights(model).tensors
            feedback.keep({name: change[name] - sent[name] for name in names})
            return packed

        steps = self.epochs * -(-len(data) // self.batch)
        return Job(Cost(steps=steps, nbytes=packed_bytes(model), networks=(network,)), run)

    def _anchors(self, data: Data, node: Node) -> Batch | None:
        """Return the anchors for the network's classes; those that came are kept for the rounds to come.

        Raises:
            SettingError: They are not kept here any more; the server sends them again.
        """
        if not self.anchored:
            return None
        key, came = f"anchors.{self.anchored[:32]}", self.anchors
        if came is not None and node.kept is not None:
            node.kept.put(key, came.to_bytes())
        elif came is None:
            blob = None if node.kept is None else node.kept.get(key)
            if blob is None or hashlib.sha256(blob).hexdigest() != self.anchored:
                raise SettingError(f"{node.name} {NO_ANCHORS}")
            came = SyntheticSet.from_bytes(blob, Limits(nbytes=len(blob)))
        assert came is not None
        if came.shape != data.spec.shape:
            raise SettingError(f"anchors of shape {came.shape}; {node.name} has images of {data.spec.shape}")
        return batch_for(came, self.classes, data.device)[0]


@in_own_state
def train_beside(
    network: nn.Module, data: Data, anchors: Batch | None, how: LocalSteps, generator: torch.Generator
) -> float:
    """Train a network in place on records, with anchors beside them; return the mean loss on records, last epoch.

    A step costs a forward and a backward pass over `how.batch` records and `how.anchor_batch` anchors, as one batch. A
    last batch of one record is left out where there are others: normalisation over a single value has no gradient.

    Args:
        network: On the data's device; its outputs are the classes of `data`.
        data: The site's records; each image draws one of its spec's augmentations per step.
        anchors: Normalised images (A, C, H, W) and targets (A, K) on the data's device; None: none.
        how: Step size, passes, loss.
        generator: Of the order of records and anchors and of augmentations; on the CPU.

    Raises:
        SettingError: An unknown loss, or one that left the finite numbers.
    """
    adjusted = look_up("loss", how.loss, LOSSES)
    if anchors is None:
        how = replace(how, anchor_batch=0, anchor_weight=0.0)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), how.lr, how.momentum, weight_decay=how.weight_decay)
    start = [value.detach().clone() for value in network.parameters()] if how.proximal_mu else []
    counts, operations = data.counts.to(data.device), data.spec.operations
    prior = counts.float() / len(data)
    if anchors is not None:
        prior = (1 - how.anchor_weight) * prior + how.anchor_weight * anchors.targets.mean(0)
    seen = Seen(counts, prior)
    mean = torch.zeros((), dtype=torch.float32, device=data.device)
    last = how.epochs * -(-len(data) // how.batch) - 1
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, how.lr_end, max(last, 1))
    for epoch in range(how.epochs):
        losses, passed = torch.zeros((), dtype=torch.float32, device=data.device), 0
        order = torch.randperm(len(data), generator=generator)
        for k, index in enumerate(order.split(how.batch)):
            if len(index) == 1 < len(data):
                continue
            check_time()
            images = data.batch(index).images
            if anchors is not None:
                drawn = torch.randint(len(anchors.images), (how.anchor_batch,), generator=generator).to(data.device)
                images = torch.cat([images, anchors.images[drawn]])
            augment = Augmentation.draw(operations, len(images), generator)
            if not how.augment:
                augment.choice[: len(index)] = -1
            with autocast_of_caller(data.device), repeatable(network, generator.initial_seed(), epoch, k):
                logits = network(augment(images)).float()
            real, labels = logits[: len(index)], data.labels[index.to(data.device)]
            loss = on_records = F.cross_entropy(adjusted.of(real, seen, how.strength), labels)
            if anchors is not None:
                others = logits[len(index) :]
                if adjusted.anchors_too:
                    others = adjusted.of(others, seen, how.strength)
                beside = F.cross_entropy(others, anchors.targets[drawn])
                loss = (1 - how.anchor_weight) * on_records + how.anchor_weight * beside
            if start:
                pull = sum((w - s).square().sum() for w, s in zip(network.parameters(), start, strict=True))
                loss = loss + how.proximal_mu / 2 * pull
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses += on_records.detach() * len(index)
            passed += len(index)
        mean = losses / max(passed, 1)
    if not torch.isfinite(mean):
        raise SettingError(f"local training diverged at lr {how.lr:g}; try a third of it")
    return float(mean)

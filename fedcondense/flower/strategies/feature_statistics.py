"""Gaussians of features (FedPFT: Beitollahi et al., 2024, https://arxiv.org/abs/2402.01862), on a random network.

Diagonal covariances and one Gaussian per class and site, on the features of an untrained network where FedPFT has a
pretrained one. The server trains a linear head on features drawn from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcondense.ambient import in_own_state
from fedcondense.contract import Holder
from fedcondense.data import Data
from fedcondense.errors import UntrustedSetError
from fedcondense.flower.asking import Asked
from fedcondense.flower.caps import Cost
from fedcondense.flower.contract import Answer, Job, Node, Question, Site, State, Task
from fedcondense.flower.payloads import Sums
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.settings import number
from fedcondense.flower.strategies.entry import Entry, ServerSide
from fedcondense.flower.strategies.features import feature_dims, labelled_by, random_features
from fedcondense.networks import default_network
from fedcondense.randomness import stream

__all__ = ["FEATURE_STATISTICS", "FeatureStatistics", "Moments"]

_SAMPLES = 20_000  # features drawn for the head, all sites and classes together
_HEAD_STEPS = 500


@dataclass(frozen=True)
class Moments(Task[Sums]):
    """Send the mean and the variances of features per class that a site has, in half precision.

    Args:
        classes: The names that labels index, in order.
        network: A name in `NETWORKS`; empty: the one for the images' size.
        seed: Of the network.
    """

    classes: tuple[str, ...] = ()
    network: str = ""
    seed: int = number(0, 0)

    name: ClassVar[str] = "moments"
    leaves: ClassVar[str] = "means and variances of features per class"
    payload: ClassVar[type[Sums]] = Sums

    def prepare(self, holder: Holder, node: Node) -> Job[Sums]:
        """Return one pass over all records."""
        data = labelled_by(holder, self.classes, node)
        network = self.network or default_network(data.spec.shape)

        def run() -> Sums:
            with torch.autocast(data.device.type, enabled=False):
                return _moments(random_features(data, network, self.seed), data)

        d = random_features(data.subset(torch.arange(1)), network, self.seed).shape[1]
        held = int((data.counts > 0).sum())
        return Job(Cost(nbytes=held * (4 * d + 16), memory=4 * len(data) * d, networks=(network,)), run)


def _moments(features: Tensor, data: Data) -> Sums:
    """Return label, count, mean and variances of each class that is present."""
    present = torch.where(data.counts > 0)[0]
    rows = [features[data.labels == int(c)] for c in present]
    return Sums(
        {
            "labels": present,
            "counts": data.counts[present],
            "means": torch.stack([row.mean(0) for row in rows]).half().cpu(),
            "variances": torch.stack([row.var(0, correction=0) for row in rows]).half().cpu(),
        }
    )


class FeatureStatistics(Rounds):
    """Train a linear head on features that are drawn from each site's Gaussians.

    Args:
        task: What is asked; the classes of `limits` are named in it.
        limits: What a reply may hold.
        asked: As in `Rounds`.
    """

    most_rounds = 1

    def __init__(
        self,
        task: Moments = Moments(),
        limits: ReplyLimits = ReplyLimits(),
        **asked: Unpack[Asked],
    ) -> None:
        super().__init__(limits, None, **asked)
        self.task: Moments = replace(task, classes=task.classes or limits.classes or ())

    def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Question:
        """Ask everybody the same."""
        return self.task

    def examine(self, stage: str, answer: Answer[Sums]) -> None:
        """Refuse moments of other names, shapes or dtypes than `Moments` gives, and numbers that no records have."""
        sent, shape = answer.payload.tensors, self.limits.shape
        held = len(sent["labels"]) if "labels" in sent and sent["labels"].ndim else 1
        if shape is not None:
            d = feature_dims(self.task.network or default_network(shape), shape, self.task.seed)
        else:  # whatever the moments say, as long as both say the same
            d = sent["means"].shape[-1] if "means" in sent and sent["means"].ndim else 1
        whole, half = torch.empty(held, dtype=torch.int64), torch.empty(held, d, dtype=torch.float16)
        answer.payload.matching({"labels": whole, "counts": whole, "means": half, "variances": half}, "this network")
        labels, counts = sent["labels"], sent["counts"]
        if not held or len(labels.unique()) < held or not _within(labels, 0, len(self.task.classes) - 1):
            raise UntrustedSetError(f"labels that are not each one of the {len(self.task.classes)} classes, once")
        if not _within(counts, 1, self.limits.records) or bool((sent["variances"] < 0).any()):
            raise UntrustedSetError(f"counts from 1 to {self.limits.records} and variances from 0 are needed")

    def kind(self, stage: str, answer: Answer[Sums]) -> str:
        """Say how many features the moments are of."""
        return f"moments of {answer.payload.tensors['means'].shape[1]} features"

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Sums]]) -> State:
        """Draw features and fit the head; a site's Gaussians count by its records."""
        generator = stream(self.task.seed, "feature-statistics")
        total = sum(int(answer.payload.tensors["counts"].sum()) for answer in answers)
        features, labels = [], []
        for answer in answers:
            sent = answer.payload.tensors
            means, variances = sent["means"].float(), sent["variances"].float()
            for i, (label, count) in enumerate(zip(sent["labels"].tolist(), sent["counts"].tolist(), strict=True)):
                draws = max(1, round(count * min(1.0, _SAMPLES / total)))
                noise = torch.randn(draws, means.shape[1], generator=generator)
                features.append(means[i] + noise * variances[i].sqrt())
                labels.append(torch.full((draws,), label))
        weights, mean, std = _head(torch.cat(features), torch.cat(labels), len(self.task.classes), generator)
        return state.but(tensors={"classifier": weights, "mean": mean, "std": std})

    @in_own_state
    def classify(self, data: Data) -> Tensor:
        """Return scores of records, (N, K) on the CPU."""
        kept = self.state.tensors
        network = self.task.network or default_network(data.spec.shape)
        features = (random_features(data, network, self.task.seed).cpu() - kept["mean"]) / kept["std"]
        return features @ kept["classifier"][:-1] + kept["classifier"][-1]


def _within(numbers: Tensor, least: int, most: int) -> bool:
    return bool(((numbers >= least) & (numbers <= most)).all())


def _head(features: Tensor, labels: Tensor, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a linear classifier by Adam on standardised features; return (D+1, K) weights, mean and deviation."""
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    features = (features - mean) / std
    weights = torch.zeros(features.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.01)
    for step in range(_HEAD_STEPS):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / _HEAD_STEPS)
        index = torch.randint(len(features), (256,), generator=generator)
        loss = F.cross_entropy(features[index] @ weights[:-1] + weights[-1], labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return weights.detach(), mean, std


def _feature_statistics(side: ServerSide) -> FeatureStatistics:
    task = replace(side.settings, network=side.network or side.settings.network)
    return FeatureStatistics(task, side.limits, **side.asked)


FEATURE_STATISTICS = Entry(
    _feature_statistics,
    label="feature statistics",
    travels="feature statistics per class",
    seen="the server sees each site's means and variances: of a class of one record its features",
    settings=Moments(),
    tasks=(Moments,),
)

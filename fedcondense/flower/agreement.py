"""Do other sites' sets call a set's images what it calls them? Two screens on the features of untrained networks.

Neither knows what is true: both ask the others, so neither sees what more than half of the sites say alike, nor images
that are what their label says and carry something else as well.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcondense.contract import Network
from fedcondense.flower.contract import Answer, Known, Site, Verdict
from fedcondense.networks import build, default_network
from fedcondense.randomness import stream
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["NOT_ENOUGH", "Agreement", "Means", "Rows", "rows_of"]

NOT_ENOUGH = "not enough others"
"""Why a class counts that nobody else could vouch for or against."""

_MOST = 20  # images of a site and class that are looked at
_DIMS = 256  # of one network's features, projected at random where there are more
_SETTLES = 6  # rounds in which trust settles
_AT_ONCE = 500  # images in a forward pass


class Rows(NamedTuple):
    """Images of all sets as rows of features."""

    features: Tensor  # (N, D) float64, of mean 0 and deviation 1 in all
    labels: Tensor  # (N,) int64, into classes
    sites: Tensor  # (N,) int64, into the answers
    counts: Tensor  # (S, K) float64: rows of each site and class
    classes: tuple[str, ...]


def rows_of(answers: Sequence[Answer[SyntheticSet]], known: Known, networks: int = 2) -> Rows:
    """Return the features of at most 20 images of each site and class.

    The networks follow from everybody's sets: who sends one cannot know them before all are sent.
    """
    classes = tuple(dict.fromkeys(name for answer in answers for name in answer.payload.classes))
    places = {name: k for k, name in enumerate(classes)}
    images, labels, sites = [], [], []
    for i, answer in enumerate(answers):
        batch = answer.payload.decode()
        own = torch.tensor([places[name] for name in answer.payload.classes])[batch.targets.argmax(1)]
        for label in own.unique().tolist():
            rows = (own == label).nonzero().squeeze(1)
            rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), _MOST)).round().long()]  # from first to last
            images.append(batch.images[rows])
            labels += [label] * len(rows)
            sites += [i] * len(rows)
    whole = torch.cat(images)
    digests = sorted(hashlib.sha256(answer.payload.to_bytes()).hexdigest() for answer in answers)
    drawn = hashlib.sha256(f"{known.seed} {known.round} {' '.join(digests)}".encode()).digest()
    shape = answers[0].payload.shape
    pieces = []
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for k in range(networks):
            seed = int.from_bytes(drawn[4 * k : 4 * k + 4], "big")
            network = cast(Network, build(default_network(shape), shape, max(2, len(classes)), seed).eval())
            found = torch.cat([network.features(some) for some in whole.split(_AT_ONCE)])
            if found.shape[1] > _DIMS:  # a ridge takes their cube
                found = found @ (torch.randn(found.shape[1], _DIMS, generator=stream(seed, "projection")) / _DIMS**0.5)
            pieces.append(found)
    features = torch.cat(pieces, 1).double()
    features = (features - features.mean(0)) / features.std().clamp_min(1e-9)
    label, site = torch.tensor(labels), torch.tensor(sites)
    counts = torch.zeros(len(answers), len(classes), dtype=torch.float64)
    counts.index_put_((site, label), torch.ones(len(label), dtype=torch.float64), accumulate=True)
    return Rows(features, label, site, counts, classes)


@dataclass(frozen=True)
class Agreement:
    """Leave out sites whose images the others' sets call something else.

    A ridge on random features is solved on all other sets, each class and in it each site counting alike; a site's
    agreement is the share of its images that it calls as the site does, over the classes that others hold, too.
    Poisoned sets make honest ones look odd: so sites count by their agreement until that settles; the site of the
    least goes first, and the others are judged without it; whoever agrees with those that are left in the end stays.
    Where more than half would go nobody does. Then classes go of which hardly an image is called so, where three
    others hold them.

    Args:
        least: Agreement that a site needs.
        least_of_class: Agreement that a class needs.
        few: Images of a class below which it is not judged by itself: honest ones of one or two records look odd.
        strength: The ridge, as a share of the mean diagonal.
    """

    least: float = 0.3
    least_of_class: float = 0.1
    few: int = 8
    strength: float = 0.1

    def __call__(self, answers: Sequence[Answer[SyntheticSet]], known: Known) -> Mapping[tuple[Site, str], Verdict]:
        """Judge sets per site and class."""
        rows = rows_of(answers, known)
        trust = torch.ones(len(answers), dtype=torch.float64)
        for _ in range(_SETTLES):  # before anybody goes: whom the others contradict speaks less of the others
            score = _of_sites(self.agreement(rows, trust), rows, trust > 0, everybody=True)
            trust = (score / score.max().clamp_min(1e-9)).square().clamp_min(1e-3)
        trusted, why = score >= self.least, score.clone()
        found = self.agreement(rows, trusted)
        while bool(((score := _of_sites(found, rows, trusted)) < self.least).any()):
            trusted[score.argmin()], why[score.argmin()] = False, score.min()
            found = self.agreement(rows, trusted)
        for i in (~trusted).nonzero().squeeze(1).tolist():
            is_known = not bool(found[i].isnan().all())  # to those that are left
            if is_known and float(_of_sites(found, rows, trusted, everybody=True)[i]) >= self.least:
                trusted[i] = True
        is_told = 2 * int(trusted.sum()) > len(answers)
        if not is_told:
            trusted[:] = True
        found = self.agreement(rows, trusted)
        others, verdicts = _others(rows, trusted), {}
        for i, k in rows.counts.nonzero().tolist():
            verdict = Verdict(1.0)
            if not trusted[i]:
                verdict = Verdict(0.0, f"others' sets call {100 * (1 - float(why[i])):.0f} % of its images otherwise")
            elif int(others[i, k]) < 2 or not is_told:
                verdict = Verdict(1.0, NOT_ENOUGH)
            elif others[i, k] > 2 and rows.counts[i, k] >= self.few and found[i, k] < self.least_of_class:
                verdict = Verdict(0.0, f"others' sets call {100 * (1 - float(found[i, k])):.0f} % of them otherwise")
            verdicts[answers[i].site, rows.classes[k]] = verdict
        return verdicts

    def agreement(self, rows: Rows, trusted: Tensor) -> Tensor:
        """Return the share of each site's images of a class that the others call so, (S, K); nan where none can tell.

        Args:
            rows: Of all sites.
            trusted: How much each site's sets count, (S,), from 0.
        """
        held = (rows.counts > 0).double() * trusted.double().unsqueeze(1)
        whole = held.sum(0)[rows.labels].clamp_min(1e-9)
        weights = held[rows.sites, rows.labels] / (rows.counts[rows.sites, rows.labels] * whole)
        x = F.pad(rows.features, (0, 1), value=1.0)
        weighted = x * weights.unsqueeze(1)
        targets = F.one_hot(rows.labels, len(rows.classes)).double()
        gram, products = weighted.T @ x, weighted.T @ targets
        found, others = torch.full_like(rows.counts, math.nan), _others(rows, trusted > 0)
        for i in range(len(found)):
            mine = rows.sites == i
            own_gram, own_products = gram - weighted[mine].T @ x[mine], products - weighted[mine].T @ targets[mine]
            own_gram.diagonal().add_(self.strength * own_gram.diagonal().mean() + 1e-9)
            scores = x[mine] @ torch.linalg.solve(own_gram, own_products)
            scores[:, others[i] < 1] = -math.inf
            right = (scores.argmax(1) == rows.labels[mine]).double()
            sums = torch.zeros(len(rows.classes), dtype=torch.float64).index_add_(0, rows.labels[mine], right)
            found[i] = torch.where((others[i] >= 1) & (rows.counts[i] > 0), sums / rows.counts[i], math.nan)
        return found


@dataclass(frozen=True)
class Means:
    """Leave out a site's class whose mean lies far from those of the others, where two others or more hold the class.

    The measure is the squared distance to the coordinatewise median of the others' means, over what images of one site
    and class scatter around their own mean, divided by how many they are.

    Args:
        most: How many times that a distance may be.
    """

    most: float = 15.0

    def __call__(self, answers: Sequence[Answer[SyntheticSet]], known: Known) -> Mapping[tuple[Site, str], Verdict]:
        """Judge sets per site and class."""
        rows = rows_of(answers, known)
        far = self.distances(rows)
        verdicts = {}
        for i, k in rows.counts.nonzero().tolist():
            times = float(far[i, k])
            why = NOT_ENOUGH if math.isnan(times) else f"their mean lies {times:.0f} times as far out as others'"
            is_far = times > self.most
            verdicts[answers[i].site, rows.classes[k]] = Verdict(
                0.0 if is_far else 1.0, why if is_far or math.isnan(times) else ""
            )
        return verdicts

    def distances(self, rows: Rows) -> Tensor:
        """Return how far each class mean lies from the others', in multiples of what is usual, (S, K), or nan."""
        sites, classes = rows.counts.shape
        cells = rows.sites * classes + rows.labels
        sums = rows.features.new_zeros(sites * classes, rows.features.shape[1]).index_add_(0, cells, rows.features)
        means = sums / rows.counts.flatten().clamp_min(1).unsqueeze(1)
        scatter = rows.features.new_zeros(sites * classes)
        scatter.index_add_(0, cells, (rows.features - means[cells]).square().sum(1))
        freedom = (rows.counts - 1).clamp_min(0)
        known = freedom > 0
        if not bool(known.any()):
            return torch.full_like(rows.counts, math.nan)
        scatter = scatter.view(sites, classes)
        variance = (scatter[known] / freedom[known]).median()  # of one image, as most sites have it
        means = means.view(sites, classes, -1)
        far = torch.full_like(rows.counts, math.nan)
        for k in range(classes):
            holders = (rows.counts[:, k] > 0).nonzero().squeeze(1)
            for i in holders.tolist() if len(holders) > 2 else []:
                others = holders[holders != i]
                middle = means[others, k].quantile(0.5, dim=0)
                expected = variance * (1 / rows.counts[i, k] + (1 / rows.counts[others, k]).mean() / len(others))
                far[i, k] = (means[i, k] - middle).square().sum() / expected
        return far


def _others(rows: Rows, trusted: Tensor) -> Tensor:
    """Return how many other trusted sites hold each class, (S, K)."""
    held = (rows.counts > 0) & trusted.unsqueeze(1)
    return held.sum(0) - held.long()


def _of_sites(found: Tensor, rows: Rows, trusted: Tensor, everybody: bool = False) -> Tensor:
    """Return each site's agreement over the classes that can be told, (S,); 1 for others, or where there are none."""
    can = ~found.isnan()
    right = (found.nan_to_num() * rows.counts * can).sum(1)
    total = (rows.counts * can).sum(1)
    score = torch.where(total > 0, right / total.clamp_min(1), torch.ones_like(total))
    return score if everybody else torch.where(trusted, score, torch.ones_like(score))

"""Which rounds' and sites' sets a server trains on: a set stays valid when its site is away, a gradient does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedcondense.flower.contract import Answer
from fedcondense.flower.replies import by_name
from fedcondense.flower.sites import natural, set_name, site_and_round
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["EveryRound", "Latest", "Rising", "ThisRound"]


@dataclass(frozen=True)
class ThisRound:
    """The sets of this round alone."""

    def take(
        self, server_round: int, answers: Sequence[Answer[SyntheticSet]], kept: Mapping[str, SyntheticSet]
    ) -> dict[str, SyntheticSet]:
        """Return this round's sets by site."""
        return by_name(answers)


@dataclass(frozen=True)
class Latest:
    """The last set of each site and class: absent sites stay in, and so do classes that a site no longer holds."""

    def take(
        self, server_round: int, answers: Sequence[Answer[SyntheticSet]], kept: Mapping[str, SyntheticSet]
    ) -> dict[str, SyntheticSet]:
        """Return each site's last set; of a set before it the classes that the new one lacks, where it can be cut."""
        found = dict(kept)
        for site, new in by_name(answers).items():
            before, has = kept.get(site), _held(new)
            older = None
            if before is not None and (gone := [name for name in _held(before) if name not in has]):
                if all(part.is_separable for part in before.parts):
                    older = before.restrict(gone)
                elif len(gone) == len(_held(before)):
                    older = before  # the two have no class in common: nothing is to be cut
            found[site] = new if older is None else SyntheticSet.join([new, older])
        return _in_order(found)


@dataclass(frozen=True)
class EveryRound:
    """The sets of all rounds, each as it came: what a site sends in a round is meant to stand beside what it sent.

    A site's set of the first round goes by its name, later ones by ``NAME+ROUND``.
    """

    def take(
        self, server_round: int, answers: Sequence[Answer[SyntheticSet]], kept: Mapping[str, SyntheticSet]
    ) -> dict[str, SyntheticSet]:
        """Return all sets, site by site in the order of their rounds."""
        new = {set_name(site, server_round): one for site, one in by_name(answers).items()}
        return _in_order({**kept, **new})


@dataclass(frozen=True)
class Rising:
    """The sets of all rounds, whose weight rises linearly with the round, as in FedUSD's published code.

    In round R a set of round r counts r / R. Training knows no weights, and repeating new images would cost memory and
    bytes of state; so a set keeps that share of the stored images of each class, rounded down, but at least one: its
    first ones. What has gone does not come back. A set that cannot be cut (soft labels, shared codes) stays whole while
    its share is a half or more.
    """

    def take(
        self, server_round: int, answers: Sequence[Answer[SyntheticSet]], kept: Mapping[str, SyntheticSet]
    ) -> dict[str, SyntheticSet]:
        """Return what is left of earlier sets, and the new ones."""
        found = {set_name(site, server_round): one for site, one in by_name(answers).items()}
        for name, before in kept.items():
            made = site_and_round(name)[1]
            if name in found:
                continue
            if not all(part.is_separable for part in before.parts):
                found |= {name: before} if 2 * made >= server_round else {}
                continue
            # r / (R - 1) of the images are left of it, and (R - 1) / R of those are r / R
            most = {n: max(1, count * (server_round - 1) // server_round) for n, count in _stored(before).items()}
            left = before.restrict(before.classes, most)
            assert left is not None  # one image of each class stays
            found[name] = left
        return _in_order(found)


def _stored(synthetic: SyntheticSet) -> dict[str, int]:
    """Return how many images of each class are stored."""
    counts: dict[str, int] = {}
    for part in synthetic.parts:
        for label in part.labels().tolist():
            name = part.record.classes[label]
            counts[name] = counts.get(name, 0) + 1
    return counts


def _in_order(found: Mapping[str, SyntheticSet]) -> dict[str, SyntheticSet]:
    return dict(sorted(found.items(), key=lambda item: natural(item[0])))


def _held(one: SyntheticSet) -> list[str]:
    """Return the classes of which a set has images."""
    return [name for name, n in zip(one.classes, one.counts().tolist(), strict=True) if n]

"""Which rounds' and sites' sets a server trains on: a set stays valid when its site is away, a gradient does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedcondense.flower.contract import Answer
from fedcondense.flower.replies import by_name
from fedcondense.flower.sites import natural
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["Latest", "ThisRound"]


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
        return dict(sorted(found.items(), key=lambda item: natural(item[0])))


def _held(one: SyntheticSet) -> list[str]:
    """Return the classes of which a set has images."""
    return [name for name, n in zip(one.classes, one.counts().tolist(), strict=True) if n]

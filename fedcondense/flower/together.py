"""All sets of a stage looked at together: one shape, one normalisation, and a bound on what they hold in all.

Each is sound by itself (`replies`). What is decided here follows from what sites sent and never from who came first,
so that sets that arrive early, late or in numbers take no honest site's place.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fedcondense.errors import UntrustedSetError
from fedcondense.flower.sites import natural
from fedcondense.sets.format import Limits
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["Held", "in_common", "normalised", "over_limits"]


class Held(NamedTuple):
    """A set that may be joined with others."""

    synthetic: SyntheticSet
    nbytes: int  # that it arrived in


def in_common(said: Mapping[str, str]) -> str:
    """Return what most sites' answers have in common.

    Args:
        said: What each answer is, in words, by the names of sites; at least one.

    Raises:
        UntrustedSetError: Several are as frequent: nobody can tell which is the run's.
    """
    votes = Counter(said.values())
    most = max(votes.values())
    first, *others = sorted(what for what, count in votes.items() if count == most)
    if not others:
        return first
    sides = [
        f"{what} ({', '.join(sorted((name for name, given in said.items() if given == what), key=natural)[:3])})"
        for what in (first, *others)[:3]
    ]
    raise UntrustedSetError(
        f"no kind of answer is that of most sites: {' and '.join(sides)} came from {most} each; let the server know "
        "the data (data = ...), or ask again without the sites of one kind"
    )


def normalised(
    sets: Sequence[SyntheticSet], mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> list[SyntheticSet]:
    """Return sets of one shape that all have one mean and deviation: the server's, else the median of the sites'.

    A site's own scale is no other site's business: images divided by a tiny deviation would drown everybody else's in
    training, and the network's file names one scale alone. Of two middle deviations the larger is the milder. Sets that
    have them are returned as they are.
    """
    if not sets:
        return []
    of_sites = [(one.record.mean, one.record.std) for one in sets]
    if mean is None:
        mean = tuple(sorted(channel)[(len(sets) - 1) // 2] for channel in zip(*(m for m, _ in of_sites), strict=True))
    if std is None:
        std = tuple(sorted(channel)[len(sets) // 2] for channel in zip(*(s for _, s in of_sites), strict=True))
    return [
        one
        if all((part.record.mean, part.record.std) == (mean, std) for part in one.parts)
        else one.with_record(mean=mean, std=std)
        for one in sets
    ]


def over_limits(held: Mapping[str, Held], limits: Limits) -> dict[str, str]:
    """Return which sets must go for the others to keep to limits on all of them together, and why.

    Of whatever there is too much, the largest share goes first. A class name that several sites give is shared among
    them, so that a site which keeps to a fair share of a limit never goes for those that do not.

    Args:
        held: By a key each; the order does not matter.
        limits: Of the union.
    """
    union, gone = _Union(held, limits), dict[str, str]()
    for what in union.totals():
        total, most = union.totals()[what]
        if total <= most:
            continue
        shares = union.shares(what)
        for key in sorted(shares, key=lambda key: (-shares[key], natural(key))):
            now, most = union.totals()[what]
            if now <= most:
                break
            union.drop(key)
            gone[key] = (
                f"all sets together: {total} {what}; allowed: {most}, and of those left its share is the largest"
            )
    return gone


class _Union:
    """What sets have in all, as they come off one by one."""

    def __init__(self, held: Mapping[str, Held], limits: Limits) -> None:
        self.left, self.limits = dict(held), limits
        self.names = Counter(name for one in held.values() for name in one.synthetic.classes)
        self.pixels = max((4 * math.prod(one.synthetic.shape) for one in held.values()), default=0)
        tensors = {key: _tensor_bytes(one.synthetic) for key, one in held.items()}
        # What is no tensor is header; a message has more of it than its file, whose own is looked up where it matters.
        headers = {key: one.nbytes - tensors[key] for key, one in held.items()}
        if sum(headers.values()) > limits.header:
            headers = {key: one.synthetic.nbytes - tensors[key] for key, one in held.items()}
        self.sizes = {
            key: {
                "bytes": one.nbytes,
                "bytes of headers": headers[key],
                "parts": len(one.synthetic.parts),
                "images": len(one.synthetic),
            }
            for key, one in held.items()
        }
        self.sums = Counter[str]()
        for sizes in self.sizes.values():
            self.sums.update(sizes)

    def drop(self, key: str) -> None:
        """Take a set off."""
        self.sums.subtract(self.sizes[key])
        for name in self.left.pop(key).synthetic.classes:
            self.names[name] -= 1
            if not self.names[name]:
                del self.names[name]

    def totals(self) -> dict[str, tuple[int, int]]:
        """Return what there is, and what there may be, of each kind."""
        limits, images, names = self.limits, self.sums["images"], len(self.names)
        return {
            "bytes": (self.sums["bytes"], limits.nbytes),
            "bytes of headers": (self.sums["bytes of headers"], limits.header),
            "parts": (self.sums["parts"], limits.parts),
            "images": (images, limits.decoded),
            "bytes of decoded images": (self.pixels * images, limits.decoded_bytes),
            "class names": (names, limits.classes),
            "bytes of labels": (8 * images * names, limits.decoded_bytes),
        }

    def shares(self, what: str) -> dict[str, float]:
        """Return how much of it is each set's doing."""
        if what not in ("class names", "bytes of labels"):
            kind = "images" if what == "bytes of decoded images" else what
            return {key: float(self.sizes[key][kind]) for key in self.left}
        names = {key: sum(1 / self.names[n] for n in one.synthetic.classes) for key, one in self.left.items()}
        if what == "class names":
            return names
        images, total = max(1, self.sums["images"]), max(1, len(self.names))  # images of some, times names of others
        return {key: self.sizes[key]["images"] / images + names[key] / total for key in self.left}


def _tensor_bytes(synthetic: SyntheticSet) -> int:
    return sum(part.code_bytes + part.targets.nbytes for part in synthetic.parts)

"""What arrives under two names counts once: one public key at two nodes, one set or part of a set from two sites.

This finds a node that was started twice, a file that was handed in twice, and a site that two edge servers pass on. It
does not find a Sybil: whoever wants to count twice on purpose sends other bytes under each name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fedcondense.flower.contract import Site
from fedcondense.flower.sites import natural
from fedcondense.sets.coded import Coded
from fedcondense.sets.parts import Part
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["Repeated", "part_digests", "repeated", "same_key"]

_FIELDS = ("shape", "classes", "counts", "method", "ipc", "seed", "network", "start", "steps")  # that say who made it


class Repeated(NamedTuple):
    """Which sets others have sent too."""

    whole: dict[int, str]  # by node: nothing of it is its own, and why
    rest: dict[int, SyntheticSet]  # by node: what is left without the parts that somebody else sent
    said: dict[str, str]  # by site: that parts of it are left out


def same_key(sites: Sequence[Site]) -> dict[int, str]:
    """Return whose public key another node has too, by node, and why it is left out; the first name keeps its place.

    Args:
        sites: Who has answered, under the names that they have now.
    """
    first: dict[str, Site] = {}
    gone = {}
    for site in sorted(sites, key=lambda site: (natural(site.name), site.node)):
        if (owner := first.setdefault(site.key, site)) is not site and site.key:
            gone[site.node] = f"node {site.node} has the key of {owner.name} at node {owner.node}: counts once"
    return gone


def repeated(
    sites: Mapping[int, Site],
    sets: Mapping[int, SyntheticSet],
    digests: Mapping[int, tuple[str, ...]],
    kept: Mapping[str, tuple[str, ...]],
) -> Repeated:
    """Find sets whose parts other sites have sent: what is kept goes first, then names in their order.

    Args:
        sites: By node, under the names that they have now.
        sets: By node.
        digests: `part_digests` of each.
        kept: Those of sets of earlier rounds, by the names of their sites; a site may send its own again.
    """
    found = Repeated({}, {}, {})
    owners: dict[str, str] = {}
    for name in sorted(kept, key=natural):
        owners |= {digest: name for digest in kept[name] if digest not in owners}
    for node in sorted(sets, key=lambda node: (natural(sites[node].name), node)):
        own = sites[node].name
        others = [owners.get(digest, own) for digest in digests[node]]
        owners |= {digest: own for digest in digests[node] if digest not in owners}
        left = [part for part, owner in zip(sets[node].parts, others, strict=True) if owner == own]
        names = ", ".join(sorted({owner for owner in others if owner != own}, key=natural)[:3])
        if not left:
            found.whole[node] = f"the very images of {names}: each site sends its own"
        elif len(left) < len(others):
            found.rest[node] = SyntheticSet(left)
            found.said[own] = f"{len(others) - len(left)} of {len(others)} parts are those of {names}, and count once"
    return found


def part_digests(synthetic: SyntheticSet) -> tuple[str, ...]:
    """Return a digest of each part's images, labels and record; what does not tell two makers apart is left out.

    Seconds differ when a node answers twice, and a mean and deviation may be the run's rather than the site's.
    """
    return tuple(map(_digest, synthetic.parts))


def _digest(part: Part) -> str:
    said = tuple(getattr(part.record, name) for name in _FIELDS)
    found = hashlib.sha256(repr((part.parametrization, part.codec, said)).encode())
    if isinstance(part.codes, Coded):
        pieces = {name: stored.to_bytes() for name, stored in part.codes.stored.items()}
    else:
        pieces = {name: code.contiguous().numpy().tobytes() for name, code in part.codes.items()}
    for name in sorted(pieces):
        found.update(f"{name} {len(pieces[name])} ".encode() + pieces[name])
    found.update(part.targets.contiguous().numpy().tobytes())
    return found.hexdigest()

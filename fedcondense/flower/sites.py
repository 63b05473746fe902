"""Names of sites: for people, logs and files; who a site *is* stands in `Site.key`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fedcondense.flower.contract import Site

__all__ = ["is_name", "names_of", "natural", "unnamed"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGITS = re.compile(r"(\d+)")


def is_name(text: str) -> bool:
    """Say whether a text may name a site and its file: letters, digits, ``-_.``, at most 64, no leading mark."""
    return bool(_NAME.fullmatch(text)) and not text.endswith(".")


def natural(name: str) -> list[Any]:
    """Return a key that sorts client-9 before client-10.

    >>> sorted(["client-10", "client-9", "b"], key=natural)
    ['b', 'client-9', 'client-10']
    """
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in _DIGITS.split(name)]


def unnamed(node: int, info: Any = None) -> Site:
    """Return a site before it has said its name: by the name it is registered under, where it is."""
    registered, public = str(getattr(info, "name", "") or ""), bytes(getattr(info, "public_key", b"") or b"")
    return Site(registered if is_name(registered) else "", public.hex() or str(node), node)


def names_of(sites: Iterable[Site], claims: Mapping[int, str]) -> dict[int, Site]:
    """Give each site a name of its own: the registered one, else its claim, else its node id.

    A name that several have stays with the first by node id, registered ones before claims; the others are NAME-2,
    NAME-3, and so on. Names that differ in case alone count as equal, since files are named by them.

    Args:
        sites: As `unnamed` gave them.
        claims: What nodes call themselves, by node id.
    """
    taken: set[str] = set()
    named: dict[int, Site] = {}
    for site in sorted(sites, key=lambda site: (not site.name, site.node)):
        claim = claims.get(site.node, "")
        wanted = site.name or (claim if is_name(claim) else f"node-{site.node}")
        name, number = wanted, 1
        while name.casefold() in taken:
            number += 1
            name = f"{wanted[:58]}-{number}"
        taken.add(name.casefold())
        named[site.node] = Site(name, site.key, site.node)
    return named

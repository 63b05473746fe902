"""Names of sites: for people, logs and files; who a site *is* stands in `Site.key`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import Any

from fedcondense.flower.contract import Site

__all__ = ["found_among", "is_name", "is_set_name", "names_of", "natural", "set_name", "site_and_round", "unnamed"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGITS = re.compile(r"(\d+)")


def is_name(text: str) -> bool:
    """Say whether a text may name a site and its file: letters, digits, ``-_.``, at most 64, no leading mark."""
    return bool(_NAME.fullmatch(text)) and not text.endswith(".")


def set_name(site: str, server_round: int) -> str:
    """Return what a site's set of a round goes by, where those of several rounds are kept: no site can be called so.

    >>> set_name("client-9", 1), set_name("client-9", 3)
    ('client-9', 'client-9+3')
    """
    return site if server_round == 1 else f"{site}+{server_round}"


def site_and_round(name: str) -> tuple[str, int]:
    """Return whose set a name is of, and of which round.

    >>> site_and_round("client-9"), site_and_round("client-9+3")
    (('client-9', 1), ('client-9', 3))
    """
    site, _, number = name.partition("+")
    return site, int(number) if number else 1


def is_set_name(text: str) -> bool:
    """Say whether a text may name a site's set and its file: as `is_name`, and a later round behind a plus."""
    site, plus, number = text.partition("+")
    return is_name(site) and (not plus or (number.isascii() and number.isdecimal() and len(number) < 10))


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


def found_among(
    infos: Iterable[Any], nodes: Iterable[int], before: Mapping[str, str]
) -> tuple[list[Site], dict[str, str]]:
    """Return the sites of some nodes, and the names that are taken, by keys (the `before` of `names_of`).

    Args:
        infos: Of all connected nodes.
        nodes: Which of them are meant.
        before: Names by keys, of earlier rounds; empty for a site that has not said its own.
    """
    known, had = {info.node_id: info for info in infos}, {key: name for key, name in before.items() if name}
    sites = [unnamed(node, known.get(node)) for node in nodes]
    meant = {site.key for site in sites}
    registered = {site.key: site.name for node, info in known.items() for site in [unnamed(node, info)] if site.name}
    taken = {key: name for key, name in registered.items() if key not in meant}
    return [replace(site, name=had.get(site.key, site.name)) for site in sites], {**taken, **had}


def names_of(
    sites: Iterable[Site], claims: Mapping[int, str], before: Mapping[str, str] = {}, doubtful: Container[int] = ()
) -> dict[int, Site]:
    """Give each site a name of its own: the one it had before, else the registered one, its claim, or its node id.

    A site is who its key says, whatever it calls itself: what somebody else had before, or is registered by, nobody
    gets by claiming it. What several claim, none of them gets: each is called NAME-NODE, by its node id. Names that
    differ in case alone count as equal, since files are named by them.

    Args:
        sites: As `unnamed` gave them.
        claims: What nodes call themselves, by node id.
        before: Names by keys: of all who had one in earlier rounds, and of registered nodes that were not asked.
        doubtful: Nodes whose answer is left out: their claims give way.
    """
    sites = sorted(sites, key=lambda site: site.node)
    taken = {name.casefold() for name in before.values() if name}
    names = {site.node: before[site.key] for site in sites if before.get(site.key)}
    tiers: tuple[dict[int, str], ...] = (
        {site.node: site.name for site in sites if site.name},
        {node: claim for node, claim in claims.items() if node not in doubtful},
        dict(claims),
        {site.node: f"node-{site.node}" for site in sites},
    )
    nodes = {site.node for site in sites}
    for tier in tiers:
        left = nodes - names.keys()
        wanted = {node: name for node, name in tier.items() if node in left and is_name(name)}
        often = Counter(name.casefold() for name in wanted.values())
        for node, name in sorted(wanted.items(), key=lambda item: (often[item[1].casefold()] > 1, item[0])):
            is_free = often[name.casefold()] == 1 and name.casefold() not in taken
            names[node] = name if is_free else _with_node(name, node, taken)
            taken.add(names[node].casefold())
    return {site.node: Site(names[site.node], site.key, site.node) for site in sites}


def _with_node(name: str, node: int, taken: Container[str]) -> str:
    """Return NAME-NODE, or NAME-NODE-2 where somebody calls itself that, and so on."""
    wanted = f"{name[:40]}-{node}"
    name, number = wanted, 1
    while name.casefold() in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name

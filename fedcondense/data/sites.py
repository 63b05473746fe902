"""Several data sets as the clients of one federation: each is a client, named after its folder or file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fedcondense.ambient import in_own_state
from fedcondense.data.images import Data, DataSet
from fedcondense.data.layouts import Uint8Images, first
from fedcondense.data.loading import load_parts
from fedcondense.data.partition import Partition
from fedcondense.data.splits import Labels, is_for_testing, to_data
from fedcondense.data.vocabulary import by_name, refuse_alike
from fedcondense.errors import DataError, SettingError

__all__ = ["load_sites", "site_names"]


def site_names(names: Sequence[str]) -> dict[str, str]:
    """Return what each site holds, by the site's name.

    Args:
        names: ``folder:DIR``, ``npz:FILE`` or a data set's name each, with ``SITE=`` before it where the folder's or
            file's own name is not the site's.

    Raises:
        SettingError: Two sites have one name, or one folder or file.

    Example:
        >>> site_names(["folder:data/north", "south=folder:data/s 2"])
        {'north': 'folder:data/north', 'south': 'folder:data/s 2'}
    """
    found: dict[str, str] = {}
    for given in names:
        own = re.match(r"([\w.-]{1,64})=(.+)", given, re.DOTALL)
        site, name = (own[1], own[2]) if own else ("", given)
        site = site or re.sub(r"[^\w.-]+", "-", Path(name.partition(":")[2] or name).name.removesuffix(".npz"))[:64]
        place = _place(name)
        same = next((other for other, its in found.items() if place and _place(its) == place), site)
        if same != site:
            raise SettingError(f"{same} and {site} are one and the same, {name}; name each site's data once")
        if site in found:
            raise SettingError(f"two sites are called {site!r}; name them: {site}-1={found[site]} {site}-2={name}")
        found[site] = name
    return found


def _place(name: str) -> str:
    """Return what a folder or file is, however it is spelled; empty: a data set's name."""
    kind, _, path = name.partition(":")
    return str(Path(path).resolve()) if kind in ("folder", "npz") else ""


@in_own_state
def load_sites(
    names: Sequence[str], root: str | Path | None = None, size: int | None = None, skip_broken: bool = False
) -> tuple[DataSet, Partition]:
    """Load the data sets of several sites; every record is used, for training or for testing.

    A site's own test part is for testing; of one that has none, every fifth image of a class is.

    Args:
        names: As for `site_names`.
        root: As for `load_data`.
        size: As for `load_data`; needed where sites' images are of different sizes.
        skip_broken: As for `load_data`.

    Returns:
        All records for training and all for testing, whose classes are those of all sites, matched by name; and who
        holds which of the former. `Data.broken` of the former has SITE/FILE for each file that was left out.

    Raises:
        DataError: A site cannot be loaded, images differ in size, there is one class alone, or nothing is left for
            testing.
    """
    sites = site_names(names)
    parts = {site: _parts(name, root, size, skip_broken) for site, name in sites.items()}
    shapes = {site: train.spec.shape for site, (train, _) in parts.items()}
    if len({shape[1:] for shape in shapes.values()}) > 1:
        told = first([f"{site}: {shape[1]}x{shape[2]}" for site, shape in shapes.items()])
        raise DataError(f"sites have images of different sizes ({told}); needed: one, as --size gives it (size=64)")
    named = [dict(enumerate(train.spec.classes)) for train, _ in parts.values()]
    refuse_alike(named, "the sites")
    classes = tuple(sorted({name for one in named for name in one.values()}))
    channels = max(shape[0] for shape in shapes.values())
    held = [[_arrays(part, classes, channels) for part in of_site] for of_site in parts.values()]
    splits = [
        (np.concatenate([of_site[k][0] for of_site in held]), np.concatenate([of_site[k][1] for of_site in held]))
        for k in (0, 1)
    ]
    if not len(splits[1][1]):
        raise DataError(
            "no site has five images of a class or a test/ part, so nothing is left for testing; add images"
        )
    if len(classes) < 2:
        raise DataError(f"all sites have one class, {', '.join(map(repr, classes))}; needed: two, to tell apart")
    train, test = to_data(", ".join(sites)[:100], splits, classes)
    train.broken = tuple(f"{site}/{file}" for site, (part, _) in parts.items() for file in part.broken)
    ends = np.cumsum([0, *(len(of_site[0][1]) for of_site in held)]).tolist()
    indices = tuple(torch.arange(begin, end) for begin, end in itertools.pairwise(ends))
    counts = torch.stack([torch.bincount(train.labels[index], minlength=len(classes)) for index in indices])
    about = {"sites": sites}
    return DataSet(train, test), Partition(indices, counts, train.spec.name, classes, "sites", about, tuple(sites))


def _parts(name: str, root: str | Path | None, size: int | None, skips: bool) -> tuple[Data, Data]:
    """Return a site's records for training and for testing; a site of few has none for testing."""
    train, *tests = load_parts(name, root, size, skips)
    if tests:
        return train, tests[0]
    mask = torch.from_numpy(is_for_testing(train.labels.numpy()))
    left = train.subset(~mask)
    left.broken = train.broken
    return left, train.subset(mask)


def _arrays(data: Data, classes: tuple[str, ...], channels: int) -> tuple[Uint8Images, Labels]:
    """Return images (N, H, W, C), grey ones coloured where others are, and labels that index all sites' classes."""
    images = data.images.permute(0, 2, 3, 1).numpy()
    return np.broadcast_to(images, (*images.shape[:3], channels)), by_name(data, classes).labels.numpy()

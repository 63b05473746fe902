"""The sets that a memory holds: how many images of each group they store, cut to fewer, joined, and as real images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.contract import Parametrization
from fedcondense.data.images import Data, Spec
from fedcondense.errors import SettingError
from fedcondense.parametrizations import Pixels
from fedcondense.sets.by_class import images_by_class
from fedcondense.sets.coded import put_together
from fedcondense.sets.parts import Part, Record
from fedcondense.sets.synthetic import SyntheticSet

__all__ = [
    "Mixed",
    "blank",
    "bytes_by_class",
    "count_stored",
    "cut",
    "image_bytes",
    "join",
    "merge",
    "mix",
    "real_set",
    "thin",
    "with_inseparable",
]


def join(sets: Iterable[SyntheticSet | None]) -> SyntheticSet | None:
    """Return one set of all that are there, or None if none is."""
    there = [one for one in sets if one is not None]
    return SyntheticSet.join(there) if there else None


def blank(parametrization: Parametrization, record: Record, ipc: int, *, soft: bool = False) -> SyntheticSet:
    """Return a set of no content that takes the bytes of `ipc` images per class of a record, labels included.

    Raises:
        SettingError: The parametrization cannot make so few or so many.
    """
    shapes = parametrization.shapes(len(record.classes) * parametrization.start_count(ipc), record.shape)
    codes = {name: torch.zeros(shape, dtype=parametrization.storage[name]) for name, shape in shapes.items()}
    stored, classes = len(codes[next(iter(parametrization.storage))]), len(record.classes)
    kind = torch.uint8 if classes <= 256 else torch.int16
    labels = torch.arange(classes).repeat_interleave(-(-stored // classes))[:stored].to(kind)
    targets = torch.full((stored, classes), 1 / classes, dtype=torch.float16) if soft else labels
    return SyntheticSet([Part(codes, targets, parametrization, record)])


@in_own_state
def bytes_by_class(synthetic: SyntheticSet | None) -> dict[str, Tensor]:
    """Return the decoded images of each class that has some, (n, C, H, W) uint8."""
    found = {} if synthetic is None else images_by_class(synthetic)
    return {name: images.mul(255).round().to(torch.uint8) for name, images in found.items()}


@in_own_state
def count_stored(sets: Iterable[SyntheticSet]) -> dict[str, int]:
    """Return how many stored images each group has in all sets.

    Shared codes count as the plain images whose bytes they take.
    """
    counts: Counter[str] = Counter()
    for part in (part for one in sets for part in one.parts):
        labels = part.labels()
        found = torch.bincount(labels, minlength=len(part.record.classes)).tolist()
        if part.parametrization.shared:
            decoded = part.parametrization.decoded(part.shapes, part.record.shape)
            per_row = decoded / max(1, len(labels)) / part.parametrization.start_count(1)
            found = [math.ceil(round(n * per_row, 6)) for n in found]
        counts.update(dict(zip(part.record.classes, found, strict=True)))
    return dict(counts)


def image_bytes(synthetic: SyntheticSet | None) -> int:
    """Return the bytes of the codes alone as they are stored, without labels and header."""
    return sum(part.code_bytes for part in synthetic.parts) if synthetic else 0


def with_inseparable(sets: Iterable[SyntheticSet], names: Sequence[str]) -> list[str]:
    """Return groups with those that share soft labels or codes with them, which are made again with them."""
    found = dict.fromkeys(names)
    for one in sets:
        if not found.keys().isdisjoint(one.classes) and not all(part.is_separable for part in one.parts):
            found |= dict.fromkeys(one.classes)
    return list(found)


def cut(
    sets: Sequence[SyntheticSet],
    most: Mapping[str, int],
    uniform: Callable[[str], float],
    *,
    leave: Callable[[SyntheticSet, Mapping[str, int]], SyntheticSet | None] | None = None,
) -> list[SyntheticSet]:
    """Return the sets with a bounded number of stored images per group.

    A group in several sets is cut in all of them, each of its images as likely as another (systematic sampling).

    Args:
        sets: What is stored.
        most: The bound of each group; a group that is not named is left out.
        uniform: Draws a group's offset, from 0 to 1.
        leave: Leaves so many images of each group in a set; None: the first.
    """
    total, before, kept = count_stored(sets), Counter[str](), []
    for one in sets:
        stored, keep = count_stored([one]), {}
        for name, n in stored.items():
            part, offset = min(most.get(name, 0), total[name]) / max(1, total[name]), uniform(name)
            keep[name] = int(part * (before[name] + n) + offset) - int(part * before[name] + offset)
        before.update(stored)
        if any(keep.values()):
            names = [name for name, n in keep.items() if n]
            kept.append(one if keep == stored else leave(one, keep) if leave else one.restrict(names, keep))
    return [one for one in kept if one is not None]


@in_own_state
def thin(synthetic: SyntheticSet, most: Mapping[str, int], uniform: Callable[[str], float]) -> SyntheticSet | None:
    """Return a set of so many stored images of each group, spread evenly over those there are; None if none is left.

    The first ones, as `restrict` keeps, would be the oldest where sets were merged.

    Args:
        synthetic: Separable parts, coded or not; coded ones keep their bytes.
        most: How many of each group; of one that is not named, none.
        uniform: Draws a group's offset, from 0 to 1.

    Raises:
        SettingError: Images cannot be left out of it.
    """
    total, before = count_stored([synthetic]), Counter[str]()
    parts = []
    for part in synthetic.parts:
        rows = []
        for c, name in enumerate(part.record.classes):
            mine = (part.labels() == c).nonzero().flatten()
            place = before[name] + torch.arange(len(mine))
            before[name] += len(mine)
            share, offset = min(most.get(name, 0), total[name]), uniform(name)
            ends = [((place + k).double() * share / max(1, total[name]) + offset).floor() for k in (0, 1)]
            rows.append(mine[ends[1] > ends[0]])
        if (kept := _of_rows(part, torch.cat(rows).sort().values)) is not None:
            parts.append(kept)
    return SyntheticSet(parts) if parts else None


def _of_rows(part: Part, rows: Tensor) -> Part | None:
    """Return some stored images of a part, those of the classes that are left."""
    if len(rows) == part.stored:
        return part
    if not len(rows):
        return None
    if not part.is_separable:
        raise SettingError(f"{part.record.method}: shared codes or soft labels; condense again at the size wanted")
    kept, labels = part.labels()[rows].unique(return_inverse=True)
    record, places = part.record, kept.tolist()
    counts = tuple(record.counts[c] for c in places) if record.counts else ()
    record = replace(record, classes=tuple(record.classes[c] for c in places), counts=counts)
    targets = labels.to(torch.uint8 if len(places) <= 256 else torch.int16)
    return Part(part.rows(rows), targets, part.parametrization, record)


_OF_ONE_MAKING = {"classes", "counts", "ipc", "seed", "steps", "seconds"}
"""What the records of two sets that were made alike may differ in."""


def merge(sets: Sequence[SyntheticSet]) -> list[SyntheticSet]:
    """Return the sets with fewer parts: those that were made alike are one, and the file holds their record once.

    The record of a merged part has the first's seed, the fewest steps, the seconds of all, and the sums of counts.
    Parts of soft labels or shared codes stay.
    """
    alike: dict[Any, list[Part]] = {}
    for k, part in enumerate(part for one in sets for part in one.parts):
        same = {name: value for name, value in vars(part.record).items() if name not in _OF_ONE_MAKING}
        like = (repr(part.parametrization), part.codec, repr(same))
        alike.setdefault(like if part.is_separable else k, []).append(part)
    return [SyntheticSet([_merged(parts)]) for parts in alike.values()]


def _merged(parts: Sequence[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]
    records = [part.record for part in parts]
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(dict.fromkeys(record.classes, 0) | dict(zip(record.classes, record.counts, strict=False)))
    place = {name: c for c, name in enumerate(counts)}
    labels = [torch.tensor([place[name] for name in part.record.classes])[part.labels()] for part in parts]
    record = replace(
        records[0],
        classes=tuple(counts),
        counts=tuple(counts.values()),
        ipc=max(one.ipc for one in records),
        steps=min(one.steps for one in records),
        seconds=round(sum(one.seconds for one in records), 1),
    )
    codes = put_together([part.codes for part in parts])
    targets = torch.cat(labels).to(torch.uint8 if len(counts) <= 256 else torch.int16)
    return Part(codes, targets, parts[0].parametrization, record)


@in_own_state
def real_set(images: Mapping[str, Tensor], spec: Spec, method: str, seed: int) -> SyntheticSet | None:
    """Return real images as a set of plain pixels, or None if there are none.

    Args:
        images: (n, C, H, W) uint8 of each group.
        spec: What the images are; its class names are replaced by the groups'.
        method: What the record calls them.
        seed: The memory's, for the record.
    """
    if not any(map(len, images.values())):
        return None
    labels = torch.arange(len(images)).repeat_interleave(torch.tensor([len(i) for i in images.values()]))
    data = Data(torch.cat(list(images.values())), labels, replace(spec, classes=tuple(images)))
    record = replace(Record.of(data, method, 0, seed), start="real")
    targets = labels.to(torch.uint8 if len(images) <= 256 else torch.int16)
    return SyntheticSet([Part({"images": data.images}, targets, Pixels(), record)])


class Mixed(NamedTuple):
    """Stored and new images together: what a maker condenses again.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, the place of each image's group.
        stored: (N,) bool, which images were stored already.
        counts: How many real images each group stands for.
    """

    images: Tensor
    labels: Tensor
    stored: Tensor
    counts: tuple[int, ...]


@in_own_state
def mix(names: Sequence[str], new: Mapping[str, Tensor], old: Mapping[str, Tensor], seen: Mapping[str, int]) -> Mixed:
    """Put the new images of groups and their stored ones together; stored ones repeat by the records they stand for.

    Args:
        names: The groups.
        new: (n, C, H, W) uint8 of each group that has new images.
        old: (m, C, H, W) uint8 of each group that has stored ones.
        seen: How many real images the stored ones of a group stand for.
    """
    images, labels, stored, counts = [], [], [], []
    for label, name in enumerate(names):
        arrived = new.get(name)
        pieces = [] if arrived is None else [arrived]
        if name in old:
            repeats = 1 if arrived is None else max(1, round(seen[name] / len(old[name])))
            pieces.append(old[name].repeat(repeats, 1, 1, 1))
        stored += [torch.full((len(piece),), piece is not arrived) for piece in pieces]
        images += pieces
        labels += [label] * sum(map(len, pieces))
        counts.append((seen.get(name, 0) if name in old else 0) + (0 if arrived is None else len(arrived)))
    return Mixed(torch.cat(images), torch.tensor(labels), torch.cat(stored), tuple(counts))

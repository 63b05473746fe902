"""What the labels of a data set are called: classes are matched by name wherever two data sets meet."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import ConcatDataset, Subset

from fedcondense.data.class_names import class_name
from fedcondense.data.images import Data
from fedcondense.data.layouts import first
from fedcondense.errors import DataError

__all__ = [
    "Names",
    "Vocabulary",
    "by_name",
    "refuse_alike",
    "spelling",
    "tell_of_gaps",
    "tell_of_lacking",
    "texts",
    "to_classes",
    "vocabulary_of",
    "warn_of_alike",
]

_LOG = logging.getLogger(__name__)

Integers = npt.NDArray[np.int64]
Names = dict[int, str]


class Vocabulary(NamedTuple):
    """Where each item of a data set comes from, and what labels are called there."""

    names: list[Names | None]  # of each source, by label; None: it names none
    sources: list[Any]  # the data sets that hold the items
    which: Integers  # (N,), the source of each item
    where: Integers  # (N,), its index there


def texts(names: Iterable[Any]) -> tuple[str, ...]:
    """Return class names as `class_names` does, but of which two may be equal.

    >>> texts([b"cat", 7, ("tench", "Tinca tinca")])
    ('cat', '7', 'tench, Tinca tinca')
    """
    return tuple(class_name(name, label) for label, name in enumerate(names))


def vocabulary_of(dataset: Any, title: str, key: str | None = None, is_strict: bool = True) -> Vocabulary:
    """Return what labels are called, through `Subset`, `ConcatDataset` and other data sets around a `dataset`.

    Args:
        dataset: A map-style data set. Its own names are its `classes`, its `class_to_idx` or, of Hugging Face's, the
            `features` of the label; a `target_transform` moves them with the labels.
        title: What errors call it.
        key: The items' key of the label, where items are dicts.
        is_strict: Refuse names that are not clear; else there are none, since the caller has others.

    Raises:
        DataError: It gives names in two ways that disagree, or joins data sets of different names out of sight.
    """
    count = len(dataset)
    inner = next((i for i in (getattr(dataset, name, None) for name in ("dataset", "subset")) if _is_mapped(i)), None)
    try:
        own = _moved(_own_names(dataset, title, key), dataset, title)
    except DataError:
        if is_strict:
            raise
        own = None
    if own is not None or (inner is None and not isinstance(dataset, ConcatDataset)):
        return Vocabulary([own], [dataset], np.zeros(count, np.int64), np.arange(count))
    if isinstance(dataset, ConcatDataset):
        parts = [vocabulary_of(part, title, key, is_strict) for part in dataset.datasets]
        shifts = np.cumsum([0, *(len(part.names) for part in parts)])
        return Vocabulary(
            [names for part in parts for names in part.names],
            [source for part in parts for source in part.sources],
            np.concatenate([part.which + shift for part, shift in zip(parts, shifts[:-1], strict=True)]),
            np.concatenate([part.where for part in parts]),
        )
    found = vocabulary_of(inner, title, key, is_strict)
    if isinstance(dataset, Subset):
        index = np.asarray(dataset.indices, dtype=np.int64)
        return found._replace(which=found.which[index], where=found.where[index])
    if any(names != found.names[0] for names in found.names):
        kind = type(dataset).__name__
        raise DataError(f"{title}: a {kind} around data sets of different classes; give it `classes` of its own")
    names = _moved(found.names[0], dataset, title) if is_strict else found.names[0]
    return Vocabulary([names], [dataset], np.zeros(count, np.int64), np.arange(count))


def to_classes(
    vocabulary: Vocabulary, labels: Integers, title: str, wanted: Sequence[str] | None
) -> tuple[tuple[str, ...], Integers]:
    """Match labels by name.

    Args:
        vocabulary: What they are called.
        labels: (N,), as the items have them.
        title: What errors call the data set.
        wanted: The class names that labels are to index; None: all of the vocabulary, in its order.

    Returns:
        The class names, none if nobody names any; and (N,) labels that index them.

    Raises:
        DataError: A label without a name, a name that is not wanted, names that differ by their spelling alone, or some
            that are named while others are not.
    """
    named = [names for names in vocabulary.names if names is not None]
    if not named:
        return tuple(wanted or ()), labels
    if len(named) < len(vocabulary.names):
        raise DataError(
            f"{title}: joined of data sets of which some name their classes and others do not; give each `classes`"
        )
    known = dict.fromkeys(name for names in named for name in names.values())
    if wanted is None:
        if any(names != named[0] for names in named):
            refuse_alike(named, title)
        wanted = tuple(known)
    place = {name: label for label, name in enumerate(wanted)}
    mapped = np.empty_like(labels)
    for source, names in enumerate(named):
        mine = vocabulary.which == source
        for label in np.unique(labels[mine]).tolist():
            if label not in names:
                have = f"{len(names)} classes ({first(names.values())})"
                raise DataError(f"{title}: label {label} has no name; the data set names {have}: give it all `classes`")
            mapped[mine & (labels == label)] = _place(names[label], place, title)
    return tuple(wanted), mapped


def by_name(data: Data, classes: tuple[str, ...]) -> Data:
    """Return data whose labels index other class names, by which theirs are found.

    Raises:
        DataError: A class that occurs is none of them.
    """
    count = len(data)
    own: list[Names | None] = [dict(enumerate(data.spec.classes))]
    vocabulary = Vocabulary(own, [data], np.zeros(count, np.int64), np.arange(count))
    _, labels = to_classes(vocabulary, data.labels.cpu().numpy(), data.spec.name, classes)
    return Data(data.images, torch.from_numpy(labels).to(data.device), replace(data.spec, classes=classes))


def warn_of_alike(classes: Sequence[str], title: str) -> None:
    """Say which class names of one data set differ by case, spaces, hyphens or Unicode form alone; letters may."""
    seen: dict[str, str] = {}
    pairs = [f"{seen[k]!r} and {name!r}" for name in classes if seen.setdefault(k := spelling(name), name) != name]
    if pairs:
        _LOG.warning(
            "%s: classes that differ by case, spaces, hyphens or Unicode form alone stay two: %s", title, first(pairs)
        )


def tell_of_gaps(labels: Sequence[Any], classes: Sequence[str], title: str) -> None:
    """Say which labels below the largest have no image in any part, where labels are all that is known of classes."""
    held = set().union(*(part.tolist() for part in labels))
    if held and (gaps := [name for label, name in enumerate(classes) if label not in held]):
        _LOG.warning(
            "%s: no image has a label of %s, and where labels have no names all from 0 on are classes; give names, or "
            "numbers without gaps",
            title,
            first(gaps),
        )


def tell_of_lacking(train: Data, test: Data) -> None:
    """Say which classes of the test part training lacks: a network cannot learn them."""
    lacking = ((test.counts > 0) & (train.counts == 0)).nonzero().flatten().tolist()
    if lacking and len(train):
        few = first([f"{train.spec.classes[c]!r} ({int(test.counts[c])} images)" for c in lacking])
        _LOG.warning("%s: the test part has classes that training lacks: %s", train.spec.name, few)


def _place(name: str, place: Mapping[str, int], title: str) -> int:
    if name in place:
        return place[name]
    alike = next((other for other in place if spelling(other) == spelling(name)), None)
    if alike is not None:
        raise DataError(
            f"{title}: class {name!r} differs from {alike!r} by case, spaces, hyphens or Unicode form alone; rename "
            "one, or give classes that hold both"
        )
    raise DataError(
        f"{title}: class {name!r} is none of the classes that are known ({first(place)}); rename it, leave its images "
        "out, or give classes= to say what labels stand for"
    )


def refuse_alike(named: Sequence[Names], title: str) -> None:
    """Refuse names of different data sets that are joined, if spelling alone tells them apart."""
    spelled: dict[str, set[str]] = {}
    for name in {name for names in named for name in names.values()}:
        spelled.setdefault(spelling(name), set()).add(name)
    for same in (sorted(names) for names in spelled.values() if len(names) > 1):
        if not any(set(same) <= set(names.values()) for names in named):
            raise DataError(
                f"{title}: joined data sets call classes {same[0]!r} and {same[1]!r}, which differ by case, spaces, "
                "hyphens or Unicode form alone; rename one, or give classes that hold both"
            )


def spelling(name: str) -> str:
    """Return what two names share that differ by case, spaces, hyphens or Unicode form alone."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\s_-]+", "", plain) or plain


def _is_mapped(dataset: Any) -> bool:
    return hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


def _own_names(dataset: Any, title: str, key: str | None) -> Names | None:
    """Return what a data set itself says that labels are called."""
    features = getattr(dataset, "features", None)
    if key is not None and isinstance(features, Mapping):
        given = getattr(features.get(key), "names", None)
        return dict(enumerate(texts(given))) if given else None
    classes, index = getattr(dataset, "classes", None), getattr(dataset, "class_to_idx", None)
    if isinstance(classes, Mapping):  # names by label, or labels by name
        index = (
            classes if not all(isinstance(k, int | np.integer) for k in classes) else {v: k for k, v in classes.items()}
        )
        classes = None
    if classes is not None and not isinstance(classes, list | tuple | np.ndarray):
        given = type(classes).__name__
        raise DataError(f"{title}: the data set's `classes` are a {given}; needed: a list of names, or give classes=")
    listed = dict(enumerate(texts(classes))) if classes is not None and len(classes) else None
    if not isinstance(index, Mapping) or not index:
        return listed
    synonyms = {} if classes is None else {i: set(texts(_listed(name))) for i, name in enumerate(classes)}
    indexed: Names = {}
    for name, label in index.items():
        label = _whole(label, f"{title}: class_to_idx of {name!r}")
        word = class_name(name, label)
        if listed is not None and (word == listed.get(label) or word in synonyms.get(label, ())):
            continue
        if listed is not None or label in indexed:
            other = listed.get(label) if listed is not None else indexed[label]
            raise DataError(
                f"{title}: label {label} is {other!r} and {word!r}, by the data set's classes and class_to_idx; give "
                "classes= in the order of the labels"
            )
        indexed[label] = word
    return dict(sorted((listed or indexed).items()))


def _moved(names: Names | None, dataset: Any, title: str) -> Names | None:
    """Return names under the labels that a `target_transform` makes of theirs."""
    transform = getattr(dataset, "target_transform", None)
    if names is None or transform is None:
        return names
    moved: Names = {}
    for label, name in names.items():
        about = f"{title}: target_transform of label {label}"
        try:
            to = _whole(transform(label), about)
        except DataError:
            raise
        except Exception as error:  # the user's own function
            raise DataError(
                f"{about} raised {type(error).__name__}: {error}; give classes= for what it makes"
            ) from error
        if to in moved:
            raise DataError(f"{about} is that of {moved[to]!r} and {name!r}; give classes= for what it makes")
        moved[to] = name
    return dict(sorted(moved.items()))


def _whole(value: Any, about: str) -> int:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iu":
        raise DataError(f"{about} is {str(value)[:60]!r}; needed: a whole number, so give classes=")
    return int(array.reshape(()))


def _listed(name: Any) -> Any:
    return name if isinstance(name, tuple | list) else (name,)

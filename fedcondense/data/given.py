"""Whatever people hold as labelled images, as `Data`: torch data sets and loaders, arrays, folders, names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedcondense.data.images import Data
from fedcondense.data.items import from_dataset
from fedcondense.data.layouts import batch_channels_last, first, to_bytes, to_numbers
from fedcondense.data.loading import load_test, load_train
from fedcondense.data.splits import check_labels, to_data
from fedcondense.data.vocabulary import vocabulary_of
from fedcondense.errors import DataError

__all__ = ["as_data", "as_test"]

_NEEDED = (
    "needed: Data, a map-style Dataset or a DataLoader of (image, label), arrays (images, labels), a folder, or the "
    "name of a data set"
)
_NO_SETS = (tuple, list, dict, Tensor, np.ndarray)  # they have a length and items, which are no records


def as_data(given: Any, size: int | None = None) -> Data:
    """Return labelled images, however they come; `Data` are returned as they are.

    Args:
        given: `Data`; a map-style Dataset (see `from_dataset`); a DataLoader, or anything else with a length that gives
            batches of images and labels; a pair of arrays or tensors, images (N, H, W), (N, H, W, C) or (N, C, H, W) of
            uint8 or in [0, 1] and whole-number labels (N,); the path of a folder with a folder per class; or a name, as
            for `load_train`.
        size: Pixels a side that images of a Dataset, folder or name are brought to, from their middle; None: they stay.

    Raises:
        DataError: It is something else, or what it holds cannot be read.
    """
    if isinstance(given, Data):
        return given
    if isinstance(given, str | os.PathLike):
        return load_train(_named(given), size=size)
    if isinstance(given, tuple | list) and len(given) == 2 and all(isinstance(v, np.ndarray | Tensor) for v in given):
        return _from_arrays(*given)
    if _is_loader(given):
        return _from_loader(given)
    if hasattr(given, "__len__") and hasattr(given, "__getitem__") and not isinstance(given, _NO_SETS):
        return from_dataset(given, str(getattr(given, "name", type(given).__name__)), size=size)
    if isinstance(given, torch.utils.data.IterableDataset) or hasattr(given, "__next__"):
        raise DataError(f"a {type(given).__name__}, which may have no end; {_NEEDED}")
    raise DataError(f"a {type(given).__name__}; {_NEEDED}")


def as_test(given: Any) -> Data:
    """Return labelled images to test on, as `as_data` does; of a name, or of a folder with one, the test split.

    Raises:
        DataError: As there.
    """
    return load_test(_named(given)) if isinstance(given, str | os.PathLike) else as_data(given)


def _named(given: str | os.PathLike[str]) -> str:
    """Return the name by which data are loaded: a folder's path is one, too."""
    return f"folder:{given}" if Path(given).is_dir() else str(given)


def _is_loader(given: Any) -> bool:
    return hasattr(given, "__iter__") and hasattr(given, "__len__") and hasattr(given, "dataset")


def _from_arrays(images: Any, labels: Any, name: str = "arrays", classes: Sequence[str] = ()) -> Data:
    """Return arrays as they are meant: see `as_data`."""
    pixels, numbers = (v.detach().cpu().numpy() if isinstance(v, Tensor) else v for v in (images, labels))
    known = to_numbers(batch_channels_last(pixels, name), name)
    found = [(to_bytes([known], name)[0], check_labels(numbers, len(known), name))]
    return to_data(name, found, tuple(classes))[0]


def _batches(loader: Iterable[Any]) -> Iterator[Any]:
    """Return the batches, or say that a loader cannot make any of its items."""
    try:
        yield from loader
    except (TypeError, RuntimeError) as error:  # of torch's default_collate
        if not any(said in str(error) for said in ("default_collate", "stack expects each tensor to be equal size")):
            raise
        last = str(error).strip().splitlines()[-1]  # a worker's error holds its traceback
        raise DataError(f"the DataLoader cannot batch its items; give the Dataset itself ({last})") from error


def _from_loader(loader: Iterable[Any]) -> Data:
    """Return all batches of a loader, whose data set may name its classes."""
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, torch.utils.data.IterableDataset):
        raise DataError("a DataLoader of an IterableDataset, which need not end; give a map-style Dataset")
    images, labels = list[Tensor](), list[Tensor]()
    for number, batch in enumerate(_batches(loader)):
        if not (isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(v, Tensor) for v in batch)):
            raise DataError(f"batch {number} of the loader is no pair of tensors (images, labels); {_NEEDED}")
        images.append(batch[0])
        labels.append(batch[1])
    if not images:
        raise DataError("the loader gives no batch; needed: at least one image")
    if len({tuple(one.shape[1:]) for one in images}) > 1:
        raise DataError("the loader's batches hold images of different shapes; needed: one, as a Resize gives it")
    name = str(getattr(dataset, "name", type(dataset).__name__))
    named = vocabulary_of(dataset, name).names
    if any(one != named[0] for one in named):
        raise DataError(f"{name}: joined of data sets whose labels mean different classes; give the Dataset itself")
    known = named[0] or {}
    if sorted(known) != list(range(len(known))):
        raise DataError(f"{name}: labels {first(map(str, known))} are named, not 0 to K - 1; give the Dataset itself")
    return _from_arrays(torch.cat(images), torch.cat(labels), name, [known[label] for label in sorted(known)])

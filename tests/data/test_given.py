from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import fedcondense as fc
from fedcondense.data.given import as_data
from fedcondense.data.images import Data
from fedcondense.errors import DataError

BYTES = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
LABELS = np.arange(12) % 3


class Named(Dataset[Any]):
    classes = ("ash", "elm", "oak")

    def __len__(self) -> int:
        return len(BYTES)

    def __getitem__(self, i: int) -> Any:
        return torch.from_numpy(BYTES[i])[None].float() / 255, int(LABELS[i])


class Sized(Dataset[Any]):
    """Images of two sizes."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(1, 8 + index, 8), 0


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ()


def same(found: Data) -> bool:
    return bool((found.images[:, 0].numpy() == BYTES).all()) and found.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    "given",
    [
        (BYTES, LABELS),
        (torch.from_numpy(BYTES), torch.from_numpy(LABELS)),
        (BYTES[..., None] / 255, LABELS),
        (BYTES[:, None], LABELS[:, None]),
        Named(),
        DataLoader(Named(), batch_size=5),
        TensorDataset(torch.from_numpy(BYTES)[:, None], torch.from_numpy(LABELS)),
    ],
)
def test_what_torch_users_hold_becomes_the_same_data(given: Any) -> None:
    assert same(as_data(given))


def test_classes_keep_their_names_through_a_loader() -> None:
    for given in (Named(), DataLoader(Named(), batch_size=4)):
        assert as_data(given).spec.classes == ("ash", "elm", "oak")


def test_a_loader_of_a_part_keeps_the_names_and_of_two_vocabularies_is_refused() -> None:
    class Other(Named):
        classes = ("oak", "elm", "ash")

    part = as_data(DataLoader(Subset(Named(), [0, 1, 5])))
    assert part.spec.classes == ("ash", "elm", "oak")
    assert part.labels.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="mean different classes; give the Dataset itself"):
        as_data(DataLoader(ConcatDataset([Named(), Other()])))


def test_a_folder_and_a_name_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "oak").mkdir()
    for k in range(3):
        Image.fromarray(BYTES[k]).save(tmp_path / "oak" / f"{k}.png")
    for given in (tmp_path, str(tmp_path)):
        assert as_data(given).spec.classes == ("oak",)
    assert as_data("digits").spec.name == "digits"


def test_data_are_left_alone() -> None:
    train = fc.load_data("digits").train
    assert as_data(train) is train


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (5, "a int; needed: Data, a map-style Dataset"),
        ([1, 2], "a list; needed"),
        (Endless(), "a Endless, which may have no end"),
        (DataLoader(Endless()), "need not end; give a map-style Dataset"),
        (DataLoader(Sized(), batch_size=2), "cannot batch its items; give the Dataset itself"),
        ((BYTES, LABELS[:3]), "one for each of the images"),
        ((BYTES.astype(np.float32), LABELS), r"\[0, 1\]"),
        (DataLoader(Named(), batch_size=5, collate_fn=lambda items: items), "batch 0 of the loader is no pair"),
        ("nothing-of-this-name", "nothing-of-this-name"),
    ],
)
def test_other_kinds_get_a_sentence(given: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        as_data(given)


def test_condense_and_plan_take_them() -> None:
    how: dict[str, Any] = {"ipc": 1, "steps": 2, "network": "convnet1-w16"}
    one, other = fc.condense((BYTES, LABELS), **how), fc.condense(DataLoader(Named()), **how)
    assert torch.equal(one.pixels().images, other.pixels().images)
    assert other.classes == ("ash", "elm", "oak")
    assert fc.plan(Named(), **how).decoded == 3

"""Imagenette's layout in small: JPEGs of any size in train/ and val/, classes by WordNet's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fedcondense as fc
from fedcondense.errors import DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top, noise = tmp_path_factory.mktemp("root"), np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 2)):
        for number, level in (("n01440764", 50), ("n03028079", 200)):
            folder = top / "imagenette2" / part / number
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = np.full((80 + 10 * k, 140 - 20 * k, 3), level, np.uint8) + noise.integers(0, 9, 3, np.uint8)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}_{k}.JPEG")
    return top


@pytest.mark.parametrize("size", [64, 128])
def test_it_goes_by_its_name_at_any_size_and_its_classes_are_words(root: Path, size: int) -> None:
    train, test = fc.load_data("imagenette", root, size=size)
    assert train.spec.name == "imagenette"
    assert train.spec.classes == ("tench", "church")
    assert (len(train), len(test), train.spec.shape) == (6, 4, (3, size, size))
    by_path, _ = fc.load_data(f"folder:{root}/imagenette2", size=size)
    assert by_path.spec.classes == train.spec.classes
    assert by_path.images.equal(train.images)


def test_it_is_condensed_and_evaluated(root: Path) -> None:
    train, test = fc.load_data("imagenette", root, size=64)
    synthetic = fc.condense(train, ipc=1, objective="dm", steps=1, network="convnet1-w16")
    found = fc.evaluate(synthetic, test, network="convnet1-w16", recipe=fc.Fit(steps=5, augment=False), seeds=[0])
    assert len(found.per_class) == 2


def test_without_a_size_or_a_folder_one_line_says_what_is_needed(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needed: one size, by --size 64 or fc\.as_data"):
        fc.load_data("imagenette", root)
    with pytest.raises(DataError, match=r"unpack imagenette2\.tgz"):
        fc.load_data("imagenette", tmp_path, size=64)

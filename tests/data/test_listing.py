from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedcondense.data.catalogue import CATALOGUE
from fedcondense.data.listing import available
from fedcondense.data.loading import load_data


def random_images(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def arrays(n: int = 12, classes: int = 3, shape: tuple[int, ...] = (8, 8)) -> dict[str, Any]:
    labels = np.arange(n) % classes
    images = random_images(n, *shape)
    return {"x_train": images, "y_train": labels, "x_test": images[:6], "y_test": labels[:6]}


def save(path: Path, **changed: Any) -> Path:
    held = {key: value for key, value in {**arrays(), **changed}.items() if value is not None}
    np.savez(path, **held)
    return path


class TestAvailable:
    def test_it_lists_what_is_there_and_what_is_not(self, tmp_path: Path) -> None:
        save(tmp_path / "mine.npz", x_train=random_images(12, 3, 8, 9), x_test=random_images(6, 3, 8, 9))
        save(tmp_path / "svhn.npz")
        (tmp_path / "broken.npz").write_bytes(b"PK")
        rows = {row.name: row for row in available(tmp_path)}
        assert set(rows) == {*CATALOGUE, "mine", "broken"}
        assert rows["digits"].where == "scikit-learn"
        assert rows["cifar10"].where is None
        assert rows["mine"][2:6] == ((3, 8, 9), 12, 6, 3)
        assert rows["svhn"].where == str(tmp_path / "svhn.npz")
        assert rows["broken"].shape is None

    def test_its_figures_for_digits_are_true(self, tmp_path: Path) -> None:
        row = next(row for row in available(tmp_path) if row.name == "digits")
        train, test = load_data("digits")
        assert row[2:6] == (train.spec.shape, len(train), len(test), len(train.spec.classes))

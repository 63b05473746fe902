from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedcondense.data.catalogue import CATALOGUE
from fedcondense.data.loading import load_data


def random_images(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_image(path: Path, size: tuple[int, int] = (8, 8), mode: str = "L", value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_entry_of_the_catalogue_is_whole(name: str) -> None:
    entry = CATALOGUE[name]
    channels = entry.shape[0]
    assert len(entry.mean) == len(entry.std) in (0, channels)
    assert callable(entry.classes) or len(set(entry.classes)) == len(entry.classes)
    assert ("flip" in entry.operations) == (name not in ("digits", "mnist", "svhn"))


class TestDigits:
    def test_it_is_split_one_in_five_of_each_class(self) -> None:
        train, test = load_data("digits")
        total = train.counts + test.counts
        assert int(total.sum()) == 1797
        assert torch.equal(test.counts, (total + 4) // 5)  # every fifth, the first included

    def test_sixteen_levels_fill_the_bytes(self) -> None:
        levels = load_data("digits").train.images.unique().tolist()
        assert levels == [round(level * 255 / 16) for level in range(17)]

    def test_no_image_is_in_both_splits_more_often_than_scikit_learn_repeats_it(self) -> None:
        """All images of both splits together are scikit-learn's, as a multiset."""
        from sklearn.datasets import load_digits

        train, test = load_data("digits")
        ours = torch.cat([train.images, test.images]).flatten(1).float().mul(16 / 255).round().int().tolist()
        theirs = load_digits().data.astype(int).tolist()
        assert sorted(ours) == sorted(theirs)

    def test_digits_are_not_mirrored_and_the_constants_are_those_of_train(self) -> None:
        train, test = load_data("digits")
        assert "flip" not in train.spec.operations
        pixels = train.images.double() / 255
        assert train.spec.mean == pytest.approx([pixels.mean().item()], abs=5e-5)
        assert train.spec.std == pytest.approx([pixels.std(correction=0).item()], abs=5e-5)
        assert test.spec is train.spec

    def test_it_is_the_same_every_time(self) -> None:
        assert load_data("digits").train.fingerprint == load_data("digits").train.fingerprint


def test_torchvisions_layout_is_read_where_it_is(tmp_path: Path) -> None:
    """IDX files written by hand: two magic numbers, sizes in big-endian order, then bytes."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = random_images(6, 28, 28), np.array([9, 0, 1, 2, 3, 4], dtype=np.uint8)
    for split, n in (("train", 6), ("t10k", 2)):
        head = np.array([0x803, n, 28, 28], dtype=">i4").tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(head + images[:n].tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(
            np.array([0x801, n], dtype=">i4").tobytes() + labels[:n].tobytes()
        )
    train, test = load_data("fashion-mnist", tmp_path)
    assert torch.equal(train.images[:, 0], torch.from_numpy(images))
    assert test.labels.tolist() == [9, 0]
    assert (train.spec.mean, train.spec.std) == ((0.2861,), (0.3530,))
    assert train.spec.classes[9] == "Ankle boot"


def test_tiny_imagenet_is_read_from_its_folders(tmp_path: Path) -> None:
    top = tmp_path / "tiny-imagenet-200"
    write_image(top / "train" / "n2" / "images" / "n2_0.JPEG", (64, 64), "RGB")
    write_image(top / "train" / "n1" / "images" / "n1_0.JPEG", (64, 64), "L", 77)
    write_image(top / "val" / "images" / "val_0.JPEG", (64, 64), "RGB")
    (top / "wnids.txt").write_text("n2\nn1\n")
    (top / "words.txt").write_text("n1\tcrane, bird\nn2\tcrane\nn3\tother\n")
    (top / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn1\t0\t0\t62\t62\n")
    train, test = load_data("tiny-imagenet", tmp_path)
    assert train.spec.classes == ("crane n2", "crane n1")
    assert train.images[1].unique().tolist() == [77]
    assert test.labels.tolist() == [1]

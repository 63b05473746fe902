"""The data sets that go by a name: what they are, which files a data root holds them in, and how these are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedcondense.errors import DataError

__all__ = ["CATALOGUE", "UPRIGHT", "Arrays", "Entry"]

UPRIGHT = ("color", "crop", "cutout", "scale", "rotate")
"""The augmentations of digits and letters: a mirrored one is another or none."""

_ALL = ("color", "crop", "cutout", "flip", "scale", "rotate")


class Arrays(NamedTuple):
    """One split, as its source has it: images in any layout that `datasets` reads, and labels (N,)."""

    images: npt.NDArray[Any]
    labels: npt.NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """A named data set.

    Args:
        shape: (C, H, W) of an image.
        sizes: Images in the train and the test split, as published.
        classes: The class names, by label, or what reads them from a root that holds the files.
        mean: One value per channel in [0, 1] space, as in nearly all condensation code; empty: computed from train.
        std: As `mean`.
        files: What a data root must hold, relative to it; empty: nothing.
        read: Reads a split from a root; `download` says whether to fetch what is missing.
        operations: The augmentations that keep a label true.
        where: Where a person finds the files, if no download is made.
    """

    shape: tuple[int, int, int]
    sizes: tuple[int, int]
    classes: tuple[str, ...] | Callable[[Path], tuple[str, ...]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: tuple[str, ...]
    read: Callable[[Path, bool, bool], Arrays]  # root, train, download
    operations: tuple[str, ...] = _ALL
    where: str = ""

    def missing(self, root: Path) -> list[str]:
        """Return which of the files `root` lacks."""
        return [name for name in self.files if not (root / name).exists()]


def _torchvision(name: str) -> Callable[[Path, bool, bool], Arrays]:
    """Return a reader through torchvision's class of that name, which checks and fetches files."""

    def read(root: Path, train: bool, download: bool) -> Arrays:
        import torchvision.datasets

        split = {"split": "train" if train else "test"} if name == "SVHN" else {"train": train}
        held = getattr(torchvision.datasets, name)(root, download=download, **split)
        return Arrays(np.asarray(held.data), np.asarray(held.labels if name == "SVHN" else held.targets))

    return read


def _digits(root: Path, train: bool, download: bool) -> Arrays:
    """Return scikit-learn's digits: of each class, every fifth image (by a fixed shuffle) is for testing."""
    from sklearn.datasets import load_digits

    held = load_digits()
    images = np.rint(held.images * (255 / 16)).astype(np.uint8)  # 17 levels of grey
    rank = np.empty(len(images), dtype=np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    for label in range(10):
        mine = order[held.target[order] == label]
        rank[mine] = np.arange(len(mine))
    chosen = (rank % 5 != 0) if train else (rank % 5 == 0)
    return Arrays(images[chosen], held.target[chosen])


def _tiny_imagenet(root: Path, train: bool, download: bool) -> Arrays:
    """Return Tiny-ImageNet; its validation images are the test split, since its test labels are not public."""
    from PIL import Image

    top = root / "tiny-imagenet-200"
    labels = {word: label for label, word in enumerate((top / "wnids.txt").read_text().split())}
    if train:
        held = [(path, label) for word, label in labels.items() for path in sorted(top.glob(f"train/{word}/images/*"))]
    else:
        rows = (line.split("\t") for line in (top / "val" / "val_annotations.txt").read_text().splitlines())
        held = [(top / "val" / "images" / row[0], labels[row[1]]) for row in rows]
    images = np.empty((len(held), 64, 64, 3), dtype=np.uint8)
    for row, (path, _) in zip(images, held, strict=True):
        with Image.open(path) as image:
            if image.size != (64, 64):
                raise DataError(f"{path}: {image.size[0]}x{image.size[1]} pixels; needed: 64x64, as published")
            row[:] = np.asarray(image.convert("RGB"))  # a few are grey
    return Arrays(images, np.array([label for _, label in held], dtype=np.int64))


def _tiny_imagenet_classes(root: Path) -> tuple[str, ...]:
    """Return the first word of each class, with its WordNet number where two share a word or there are no words."""
    top = root / "tiny-imagenet-200"
    numbers = (top / "wnids.txt").read_text().split()
    rows = (line.split("\t") for line in (top / "words.txt").read_text().splitlines() if "\t" in line)
    words = {number: meanings.split(",")[0] for number, meanings in rows}
    names = [words.get(number, number) for number in numbers]
    return tuple(n if names.count(n) == 1 else f"{n} {number}" for n, number in zip(names, numbers, strict=True))


_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_CIFAR10 = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
_CIFAR100 = (
    "apple,aquarium_fish,baby,bear,beaver,bed,bee,beetle,bicycle,bottle,bowl,boy,bridge,bus,butterfly,camel,can,castle,"
    "caterpillar,cattle,chair,chimpanzee,clock,cloud,cockroach,couch,crab,crocodile,cup,dinosaur,dolphin,elephant,"
    "flatfish,forest,fox,girl,hamster,house,kangaroo,keyboard,lamp,lawn_mower,leopard,lion,lizard,lobster,man,"
    "maple_tree,motorcycle,mountain,mouse,mushroom,oak_tree,orange,orchid,otter,palm_tree,pear,pickup_truck,pine_tree,"
    "plain,plate,poppy,porcupine,possum,rabbit,raccoon,ray,road,rocket,rose,sea,seal,shark,shrew,skunk,skyscraper,"
    "snail,snake,spider,squirrel,streetcar,sunflower,sweet_pepper,table,tank,telephone,television,tiger,tractor,train,"
    "trout,tulip,turtle,wardrobe,whale,willow_tree,wolf,woman,worm"
)
_TEN = tuple("0123456789")
_IDX = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")

CATALOGUE: dict[str, Entry] = {
    "digits": Entry((1, 8, 8), (1433, 364), _TEN, (), (), (), _digits, UPRIGHT),
    "mnist": Entry(
        shape=(1, 28, 28),
        sizes=(60_000, 10_000),
        classes=_TEN,
        mean=(0.1307,),
        std=(0.3081,),
        files=tuple(f"MNIST/raw/{name}" for name in _IDX),
        read=_torchvision("MNIST"),
        operations=UPRIGHT,
    ),
    "fashion-mnist": Entry(
        shape=(1, 28, 28),
        sizes=(60_000, 10_000),
        classes=tuple(_FASHION.split(",")),
        mean=(0.2861,),
        std=(0.3530,),
        files=tuple(f"FashionMNIST/raw/{name}" for name in _IDX),
        read=_torchvision("FashionMNIST"),
    ),
    "cifar10": Entry(
        shape=(3, 32, 32),
        sizes=(50_000, 10_000),
        classes=tuple(_CIFAR10.split(",")),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        files=tuple(f"cifar-10-batches-py/{name}" for name in _BATCHES),
        read=_torchvision("CIFAR10"),
    ),
    "cifar100": Entry(
        shape=(3, 32, 32),
        sizes=(50_000, 10_000),
        classes=tuple(_CIFAR100.split(",")),
        mean=(0.5071, 0.4866, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        files=tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta")),
        read=_torchvision("CIFAR100"),
    ),
    "svhn": Entry(
        shape=(3, 32, 32),
        sizes=(73_257, 26_032),
        classes=_TEN,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        files=("train_32x32.mat", "test_32x32.mat"),
        read=_torchvision("SVHN"),
        operations=UPRIGHT,
    ),
    "tiny-imagenet": Entry(
        shape=(3, 64, 64),
        sizes=(100_000, 10_000),
        classes=_tiny_imagenet_classes,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        files=tuple(
            f"tiny-imagenet-200/{name}" for name in ("wnids.txt", "words.txt", "train", "val/val_annotations.txt")
        ),
        read=_tiny_imagenet,
        where="unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip there",
    ),
}

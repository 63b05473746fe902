"""Imagenette (Howard, fast.ai, 2019): ten classes of ImageNet in folders of JPEGs, by the names of its folders."""

from __future__ import annotations

from pathlib import Path

from fedcondense.errors import DataError

__all__ = ["IMAGENETTE", "imagenette_folder", "in_words"]

IMAGENETTE = "imagenette"
"""The name that `load_data` takes."""

_FOLDERS = ("imagenette2", "imagenette2-320", "imagenette2-160", "imagenette")  # as its archives unpack
_WORDS = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def imagenette_folder(root: Path) -> Path:
    """Return where a data root holds it: the largest images that are there.

    Raises:
        DataError: Nowhere.
    """
    for name in _FOLDERS:
        if (root / name).is_dir():
            return root / name
    raise DataError(
        f"{IMAGENETTE}: {root} holds none of {', '.join(_FOLDERS)}; unpack imagenette2.tgz of "
        "https://github.com/fastai/imagenette there, or name folder:<dir>"
    )


def in_words(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return what people call classes whose folders are called by WordNet's numbers; others keep their names.

    >>> in_words(("n03028079", "n01440764")), in_words(("church", "n01440764"))
    (('church', 'tench'), ('church', 'n01440764'))
    """
    return tuple(_WORDS[name] for name in classes) if set(classes) <= _WORDS.keys() else classes

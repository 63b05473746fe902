"""Of `coded.py`: how fast codecs are, and whether another Pillow decodes pictures to the same values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from zoo import original

import fedcondense as fc
from fedcondense.sets.codecs import CODECS, WebP, codec_named

SETS = ("fashion-mnist", "cifar10")
PICTURES = ("jpeg-10", "jpeg-25", "webp-10", "webp-30")
MEASURED = (
    "bits-1",
    "bits-2",
    "bits-2-patch",
    "bits-3",
    "bits-4",
    "bits-6",
    "palette-16",
    "jpeg-10",
    "jpeg-25",
    "webp-10",
    "webp-30",
)
_REPEATS = 7


@dataclass(frozen=True)
class Sheet(WebP):
    """One WebP sheet of all classes: in few bytes a better rival than one a class, but no class can be left out."""

    by_class: ClassVar[bool] = False


CODECS["sheet"] = Sheet


def images_of(data: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes of the ready set of 10 images a class, and their labels."""
    part = original(f"{data}-ipc10").parts[0]
    return next(iter(part.codes.values())), part.labels()


def speed(data: str, codec: str) -> dict[str, Any]:
    """Return MB of decoded pixels a second, the best of some runs: of encoding and of decoding."""
    images, labels = images_of(data)
    made = codec_named(codec)
    assert made is not None
    n, c, height, width = images.shape
    shape = (n, c, height, width)
    packed = made.encode(images, labels)
    spent = {}
    for what, run in (("encode", lambda: made.encode(images, labels)), ("decode", lambda: made.decode(packed, shape))):
        best = float("inf")
        for _ in range(_REPEATS):
            began = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - began)
        spent[what] = round(images.nbytes / best / 1e6, 1)
    return {"nbytes": len(packed), "pixels": images.nbytes} | spent


def speeds() -> dict[str, Callable[[], dict[str, Any]]]:
    """Return a cell for each codec that takes the images."""
    names = [(data, codec) for data in SETS for codec in MEASURED if data == "cifar10" or "palette" not in codec]
    return {f"speed | {data} | {codec}": partial(speed, data, codec) for data, codec in names}


def agreement(data: str, codec: str, other: Path) -> dict[str, Any]:
    """Return how far a Pillow that lies in a folder decodes from ours, over condensed and real images.

    Both decode the same bytes, encoded by ours, as the codec does it: each JPEG image by itself, a WebP sheet whole.
    """
    made = codec_named(codec)
    assert made is not None
    condensed, labels = images_of(data)
    train, _ = fc.load_data(data)
    said: dict[str, Any] = {}
    for kind, images, of in (("condensed", condensed, labels), ("real", train.images[:400], train.labels[:400])):
        (n, c, height, width), packed = images.shape, made.encode(images, of)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "packed"
            file.write_bytes(packed)
            environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(other), os.environ.get("PYTHONPATH", "")])}
            command = [sys.executable, __file__, codec, json.dumps([n, c, height, width]), str(file)]
            version = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            theirs = np.load(f"{file}.npy").astype(np.int64)
        ours = made.decode(packed, (n, c, height, width)).numpy().astype(np.int64)
        apart = np.abs(ours - theirs)
        said[kind] = {"largest": int(apart.max()), "differ": round(float((apart > 0).mean()), 5)}
        said["versions"] = [versions(), version.strip()]
    return said


def agreements(other: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the cells that compare our Pillow with another, by its folder's name."""
    kinds = [(data, codec) for data in SETS for codec in MEASURED if codec.startswith(("jpeg", "webp"))]
    return {f"agreement | {other.name} | {d} | {c}": partial(agreement, d, c, other) for d, c in kinds}


def versions() -> str:
    """Return which decoders this Pillow has."""
    import PIL
    from PIL import features

    turbo = features.version("libjpeg_turbo") or features.version("jpg")
    return f"Pillow {PIL.__version__}, libjpeg-turbo {turbo}, libwebp {features.version('webp')}"


def decode_here() -> None:
    """Decode a file with the Pillow of this process, for another process."""
    codec, shape, file = sys.argv[1:]
    made = codec_named(codec)
    assert made is not None
    np.save(f"{file}.npy", made.decode(Path(file).read_bytes(), json.loads(shape)).numpy())
    print(versions())


if __name__ == "__main__":
    decode_here()

"""Sets from other code and for other code: the field's ``.pt`` tensors in; image folders and ``.npz`` arrays out."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.data.catalogue import CATALOGUE
from fedcondense.data.class_names import folder_names
from fedcondense.data.folders import NOTE
from fedcondense.data.images import Spec
from fedcondense.data.loading import data_root, load_data
from fedcondense.errors import OutputError, SettingError, UntrustedSetError
from fedcondense.files import write_file
from fedcondense.parametrizations import Pixels
from fedcondense.sets.parts import Part, Record, to_storage
from fedcondense.sets.pictures import png
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sets.torch_files import Stored, read_torch

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["export", "import_tensors", "spec_of"]

_LOG = logging.getLogger(__name__)
_SUM = 0.02  # how far the sum of probabilities may be from 1, as in a set's own file
_CLIPPED = 0.02  # the share of clipped values from which on a warning says so
_FAR = 10  # no normalised image has many values beyond it
_NAMED = (("images", "labels"), ("images", "targets"), ("data", "targets"), ("data", "labels"), ("x", "y"))
_USUAL = "{'images': ..., 'labels': ...}, {'data': [[images, labels], ...]}"


@in_own_state
def import_tensors(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    *,
    data: str | Spec,
    normalised: bool = True,
    experiment: int = 0,
    method: str = "imported",
    max_bytes: int = 1 << 30,
) -> SyntheticSet:
    """Read a set that other code saved with `torch.save`: what the files say is never run.

    Values are rounded to bytes in [0, 1], as every set of pixels stores them. Networks that were tested on values
    outside saw something else; a warning says how many there were. Floating point from 0 to 255 is refused.

    Args:
        images: A file of DC, DSA or DM, ``{"data": [[images, labels], ...]}``, or of one pair, a tuple or named; with
            `labels` one of images alone, as MTT's ``images_best.pt``: (N, C, H, W), floating point or uint8.
        labels: A file as MTT's ``labels_best.pt``: (N,) whole numbers, or (N, K) probabilities.
        data: What the images stand for: a name that `load_data` knows, or a spec such as ``train.spec``. Labels are
            indices into its class names.
        normalised: Whether its mean and std were subtracted and divided by, as all of that code does.
        experiment: Which pair of a file of several; DC writes one an experiment.
        method: What the record is to call it.
        max_bytes: What each file may take.

    Raises:
        UntrustedSetError: A file is missing, too large, damaged, or holds something else.
        DataError: `data` names nothing.
    """
    spec = data if isinstance(data, Spec) else spec_of(data)
    content = read_torch(images, max_bytes)
    if labels is None:
        found = _pair(content, images, experiment)
        sources = (images, images)
    else:
        found = (content, read_torch(labels, max_bytes))
        sources = (images, labels)
    pixels = _pixels(found[0], spec, normalised, sources[0])
    targets = _targets(found[1], len(pixels), len(spec.classes), sources[1])
    parametrization = Pixels()
    codes, kept = to_storage({"images": pixels}, targets, parametrization)
    most = int(torch.bincount(targets.argmax(1)).max())
    fields = (spec.name, spec.shape, spec.classes, spec.mean, spec.std, method, most)
    return SyntheticSet([Part(codes, kept, parametrization, Record(*fields, augmentation=spec.operations))])


def spec_of(name: str, root: str | Path | None = None) -> Spec:
    """Return what `load_data(name, root)` calls its images; reads nothing where that is known by name alone."""
    entry = CATALOGUE.get(name)
    own = (data_root(root) / f"{name}.npz").is_file()  # goes before what is known of the name
    if own or entry is None or not entry.mean or not isinstance(entry.classes, tuple):
        return load_data(name, root).train.spec
    return Spec(name, entry.shape, entry.classes, entry.mean, entry.std, entry.operations)


@in_own_state
def export(
    synthetic: SyntheticSet, path: str | os.PathLike[str], *, test: Data | None = None, overwrite: bool = False
) -> Path:
    """Write the decoded images for other programs, whole or not at all, and return the path.

    They are rounded to bytes, and a soft label becomes its largest entry: a set's own file keeps more, in fewer bytes.

    Args:
        synthetic: The set.
        path: Where to: ``NAME.npz`` gets the arrays x_train (N, H, W, C) or (N, H, W), uint8, y_train (N,), int64,
            x_test, y_test and the class names `classes`; any other name becomes a folder with one sub-folder of PNGs
            for each class, as torchvision's ``ImageFolder`` reads. `load_data` reads both; of a folder all images are
            for training, under the names of the set's classes.
        test: Real images for the test split; a folder then has train/ and test/. Without, an .npz repeats the synthetic
            images there, since its readers ask for a test split: an accuracy on them says nothing.
        overwrite: Replace a file, or a folder that this function wrote.

    Raises:
        OutputError: The path exists, or cannot be written.
        SettingError: The images are neither grey nor coloured, or the test images have another shape or class.
    """
    path = Path(path)
    if synthetic.shape[0] not in (1, 3):
        raise SettingError(f"images of {synthetic.shape[0]} channels; needed for export: 1 or 3")
    splits = {"train": _split_of(synthetic)}
    if test is not None:
        splits["test"] = _split_like(synthetic, test)
    if path.suffix == ".npz":
        arrays = {"train": splits["train"], "test": splits.get("test", splits["train"])}
        return write_file(path, _npz(arrays, synthetic.classes), overwrite)
    folders = folder_names(synthetic.classes)
    note = _described(synthetic) | {"folders": folders, "parts": test is not None}
    return _write_folder(path, _files(splits, folders), json.dumps(note, indent=1).encode(), overwrite)


def _pair(content: Any, path: str | os.PathLike[str], experiment: int) -> tuple[Any, Any]:
    named = content if isinstance(content, dict) else {}
    plain = [[named[name] for name in pair] for pair in _NAMED if all(isinstance(named.get(n), Stored) for n in pair)]
    pairs = plain[:1] or named.get("data")
    if isinstance(content, list | tuple) and len(content) == 2 and all(isinstance(one, Stored) for one in content):
        pairs = [content]  # (images, labels)
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        given = "one tensor" if isinstance(content, Stored) else f"a {type(content).__name__}"
        _refuse(path, f"{given}; needed: (images, labels), {_USUAL}, or --labels beside it")
    if not 0 <= experiment < len(pairs):
        _refuse(path, f"{len(pairs)} sets of images and labels, number {experiment} was asked for; count from 0")
    return pairs[experiment][0], pairs[experiment][1]


def _pixels(given: Any, spec: Spec, normalised: bool, path: str | os.PathLike[str]) -> Tensor:
    """Return (N, C, H, W) float32 in [0, 1]."""
    if not isinstance(given, Stored):
        _refuse(path, f"images are a {type(given).__name__}; needed: a tensor (N, {_sizes(spec.shape)})")
    if not given.shape or not given.shape[0]:
        _refuse(path, "no images in it; needed: one or more")
    if len(given.shape) != 4 or given.shape[1:] != spec.shape:
        _refuse(path, f"images are ({_sizes(given.shape)}); {spec.name} needs (N, {_sizes(spec.shape)})")
    if not (given.dtype.is_floating_point or given.dtype == torch.uint8):
        _refuse(path, f"images are {given.dtype}; needed: floating point, or uint8")
    images = given.load()
    if images.dtype == torch.uint8:
        return images.float() / 255
    images = images.float()
    if not bool(images.isfinite().all()):
        _refuse(path, "images hold NaN or infinity; mend or remove them")
    least, most = float(images.min()), float(images.max())
    if most > 50 and float((images > _FAR).float().mean()) > _CLIPPED:  # neither normalised nor in [0, 1]
        _refuse(
            path,
            f"floating point from {least:g} to {most:g}, as bytes have; divide by 255 and pass normalised=False "
            "(--unit), or save them as uint8",
        )
    if normalised:
        if least >= 0 and most <= 1:
            _LOG.warning("%s: all values are in [0, 1]; if not normalised, pass normalised=False (--unit)", path)
        mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        images = images * std + mean
    outside = ((images < -0.5 / 255) | (images > 1 + 0.5 / 255)).float().mean().item()
    if outside > _CLIPPED:
        reason = (
            ""
            if outside < 0.3
            else f"; are they {'not normalised, or whitened (ZCA)' if normalised else 'normalised'}?"
        )
        _LOG.warning("%s: %.0f %% of the values are outside [0, 1] and are clipped%s", path, 100 * outside, reason)
    return images.clamp(0, 1)


def _targets(given: Any, count: int, classes: int, path: str | os.PathLike[str]) -> Tensor:
    """Return probabilities (N, K), float32."""
    needed = f"({count},) whole numbers from 0 to {classes - 1}, or ({count}, {classes}) probabilities"
    if not isinstance(given, Stored):
        _refuse(path, f"labels are a {type(given).__name__}; needed: a tensor of {needed}")
    given_labels = f"labels are {given.dtype} ({_sizes(given.shape)})"
    if given.shape == (count,) and not given.dtype.is_floating_point and given.dtype != torch.bool:
        labels = given.load().long()
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            _refuse(path, f"labels go from {int(labels.min())} to {int(labels.max())}; needed: {needed}")
        return F.one_hot(labels, classes).float()
    if given.shape != (count, classes) or not given.dtype.is_floating_point:
        _refuse(path, f"{given_labels}; needed: {needed}")
    targets = given.load().float()
    if not bool((targets >= 0).all() and ((targets.sum(1) - 1).abs() <= _SUM).all()):  # NaN is not >= 0
        _refuse(
            path, f"{given_labels} that are no probabilities; if they are logits, save their softmax; needed: {needed}"
        )
    return targets


def _split_of(synthetic: SyntheticSet) -> tuple[Tensor, Tensor]:
    batch = synthetic.pixels()
    return (batch.images * 255).round().clamp(0, 255).to(torch.uint8), batch.targets.argmax(1)


def _split_like(synthetic: SyntheticSet, test: Data) -> tuple[Tensor, Tensor]:
    """Return the test images of the set's classes, with its labels."""
    if test.spec.shape != synthetic.shape:
        raise SettingError(f"the set has images of {synthetic.shape}, the test data of {test.spec.shape}; give its own")
    columns = [synthetic.classes.index(c) if c in synthetic.classes else -1 for c in test.spec.classes]
    labels = torch.tensor(columns)[test.labels.cpu()]
    known = labels >= 0
    if not bool(known.any()):
        raise SettingError(f"no test image is of a class of the set ({', '.join(synthetic.classes[:5])}, ...)")
    return test.images.cpu()[known], labels[known]


def _npz(splits: dict[str, tuple[Tensor, Tensor]], classes: tuple[str, ...]) -> bytes:
    arrays: dict[str, Any] = {"classes": np.array(classes)}
    for split, (images, labels) in splits.items():
        pixels = images.permute(0, 2, 3, 1).numpy()
        arrays[f"x_{split}"] = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        arrays[f"y_{split}"] = labels.numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _files(splits: dict[str, tuple[Tensor, Tensor]], folders: list[str]) -> Iterator[tuple[Path, bytes]]:
    from PIL import Image

    for split, (images, labels) in splits.items():
        top = Path(split) if len(splits) > 1 else Path()
        seen = [0] * len(folders)
        for image, label in zip(images.permute(0, 2, 3, 1).numpy(), labels.tolist(), strict=True):
            picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            yield top / folders[label] / f"{seen[label]:05d}.png", png(picture)
            seen[label] += 1


def _described(synthetic: SyntheticSet) -> dict[str, Any]:
    """Return where the images come from: it stays beside them, and marks a folder that may be replaced."""
    record = synthetic.record
    content: dict[str, Any] = {
        "data": record.data,
        "method": record.method,
        "ipc": record.ipc,
        "images": len(synthetic),
    }
    content |= {"classes": list(synthetic.classes), "mean": list(record.mean), "std": list(record.std)}
    return content | {"evaluation": synthetic.evaluation}


def _write_folder(path: Path, files: Iterator[tuple[Path, bytes]], note: bytes, overwrite: bool) -> Path:
    """Write files into a folder beside the path and give it its name at the end; what was there goes last."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        if not overwrite:
            raise OutputError(f"{path} exists; choose another path or pass overwrite=True (--overwrite)")
        if not (path / NOTE).is_file():
            raise OutputError(f"{path} is nothing that `export` wrote, and is not replaced; choose another path")
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("part", "old"))
    try:
        new.mkdir(parents=True)
        for file, content in files:
            (new / file).parent.mkdir(parents=True, exist_ok=True)
            (new / file).write_bytes(content)
        (new / NOTE).write_bytes(note)
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}; free the disk or choose a folder that can be written") from error
    finally:  # after Ctrl-C as well
        if old.exists() and not path.exists():
            os.replace(old, path)
        for left in (new, old):
            with suppress(OSError):
                shutil.rmtree(left)
    return path


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _refuse(path: str | os.PathLike[str], reason: str) -> NoReturn:
    raise UntrustedSetError(f"{os.fspath(path)}: {reason}")

"""Folders of images: which files are read, which folders are classes, and which are parts such as train/ and val/."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from fedcondense.data.layouts import first
from fedcondense.data.vocabulary import refuse_alike, texts
from fedcondense.errors import DataError

__all__ = ["NOTE", "Listing", "is_hidden", "list_images", "lone_test", "part_of", "why_no_classes"]

_LOG = logging.getLogger(__name__)

NOTE = "fedcondense.json"
"""In a folder that a synthetic set was exported to: `classes`, and which of its `folders` each one is in."""

_NOTE_BYTES = 1 << 24
_HIDDEN = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
_PARTS = {
    "train": {"train", "training", "trn"},
    "test": {"test", "testing", "tst", "eval", "evaluation"},
    "validation": {"val", "valid", "validation", "validate", "validating", "dev", "development"},
}
_FILLERS = {"set", "data", "dataset", "images", "image", "imgs", "img", "split", "part", "samples", "pictures", "files"}


class Listing(NamedTuple):
    """The files of a folder, by part."""

    classes: tuple[str, ...]
    train: list[tuple[Path, int]]  # with labels
    test: list[tuple[Path, int]] | None  # None: the folder has no test part
    is_export: bool  # of a synthetic set: all of it is for training


def list_images(top: Path, title: str, endings: frozenset[str], is_quiet: bool = False) -> Listing:
    """Tell classes and parts of a folder apart; nothing is opened.

    Args:
        top: One folder per class; or parts, such as train/ and test/ or Train/ and val/, with one folder per class in
            each. What is hidden (``.ipynb_checkpoints``, ``__MACOSX``) is left out at any depth. A validation part is
            the test part where there is no other.
        title: What the log calls it.
        endings: Of files that can be read, lower case.
        is_quiet: Whether the log is not told of what is passed over: it will be when the images are read.

    Raises:
        DataError: It is neither, or could be both.
    """
    if not top.is_dir():
        raise DataError(f"{top}: no such folder; needed: one sub-folder for each class, as in {top}/cat/1.png")
    note = _note(top)
    if note is not None:
        parts = [part for part in ("train", "test") if note.parts and (top / part).is_dir()]
        tops = [top / part for part in parts] or [top]
        labels = {folder: label for label, folder in enumerate(note.folders)}
        found = [_labelled(part, labels, endings, Counter()) for part in tops]
        return Listing(note.classes, _some(found[0], tops[0]), found[1] if len(found) > 1 else None, True)
    tops = _parts_of(top, title, endings, is_quiet)
    skipped: Counter[str] = Counter()
    named = [_class_folders(part) for part in tops]
    for part, mine in zip(tops, named, strict=True):
        held = {folder.name: _below(folder, endings, Counter()) for folder in mine.values()}
        if why := why_no_classes(held):
            raise DataError(f"{part}: {why}")
    refuse_alike([dict(enumerate(folders)) for folders in named], title)
    classes = sorted({name for folders in named for name in folders})
    found = [
        _labelled(part, {f.name: classes.index(name) for name, f in sorted(folders.items())}, endings, skipped)
        for part, folders in zip(tops, named, strict=True)
    ]
    loose = sum(p.suffix.lower() in endings for part in {top, *tops} for p in _files(part))
    if (skipped or loose) and not is_quiet:
        kinds = first([f"{n} {ending or 'without an ending'}" for ending, n in skipped.most_common()], 5)
        outside = f"{loose} images outside of the class folders" if loose else ""
        _LOG.warning("%s: files that are passed over: %s", title, ", ".join(filter(None, (kinds, outside))))
    for part, files in zip(tops, found, strict=True):
        _some(files, part, skipped)
    return Listing(tuple(classes), found[0], found[1] if len(found) > 1 else None, False)


def why_no_classes(held: Mapping[str, Sequence[PurePath]]) -> str:
    """Say why folders are not the classes of a data set; empty: they are.

    Args:
        held: By folder, the paths of its images relative to it.
    """
    direct = {name for name, files in held.items() if any(len(file.parts) == 1 for file in files)}
    parts = [name for name in held if part_of(name) is not None]
    if parts and (len(parts) == len(held) or (any(part_of(name) == "train" for name in parts) and len(parts) > 1)):
        return f"{first(parts)}: parts of a data set, not classes; needed: class folders in them, as in train/cat/1.png"
    if nested := [name for name in parts if name not in direct and held[name]]:
        others = first([name for name in held if name not in nested])
        return (
            f"{first(nested)} is a part of a data set, but {others} beside it is not; put all class folders into parts"
        )
    inner = {name: {file.parts[0] for file in files if len(file.parts) > 1} for name, files in held.items()}
    for name, folders in inner.items():
        below = {folder for file in held[name] for folder in file.parts[:-1]}
        if odd := sorted(folder for folder in below if part_of(folder) is not None):
            return (
                f"{name}/ holds {first(odd)}, which is called as a part of a data set is; needed: parts above classes, "
                f"as in train/cat/1.png, so move them, or name the folder {name} itself"
            )
        if len(held) == 1 and len(folders) > 1 and not direct:
            return (
                f"the one folder {name} has no images but the folders {first(sorted(folders))}; if those are the "
                f"classes, name the folder {name} itself"
            )
    shared = [name for name, n in Counter(f for folders in inner.values() for f in folders).items() if n > 1]
    if not direct and len(shared) > 1:
        return (
            f"no images in {first(held)} but the same folders in them ({first(sorted(shared))}); if those are the "
            "classes, name one of the folders above, or call them train and test"
        )
    return ""


def part_of(name: str) -> str | None:
    """Return which part of a data set a folder's name stands for, in any spelling, or None.

    >>> [part_of(name) for name in ("Train", "valid", "test_images", "TESTING", "training-set", "trainer")]
    ['train', 'validation', 'test', 'test', 'train', None]
    """
    words = [word for word in re.split(r"[\W_\d]+", name.casefold()) if word and word not in _FILLERS]
    if len(words) != 1:
        return None
    word = next((words[0].removesuffix(f) for f in sorted(_FILLERS) if words[0].endswith(f)), words[0])
    return next((part for part, spellings in _PARTS.items() if word in spellings), None)


def is_hidden(name: str) -> bool:
    """Say whether a file or folder is none of the user's: hidden, or made by an operating system or a tool."""
    return name.startswith(".") or name.casefold() in _HIDDEN


def _parts_of(top: Path, title: str, endings: frozenset[str], is_quiet: bool) -> list[Path]:
    """Return the training and the test part, or the folder itself if its folders are classes."""
    named: dict[str, list[Path]] = {}
    for folder in _folders(top):
        if (part := part_of(folder.name)) and _folders(folder) and not _has_images(folder, endings):
            named.setdefault(part, []).append(folder)
    if not named:
        return [top]
    for part, folders in named.items():
        if len(folders) > 1:
            names = " and ".join(sorted(folder.name for folder in folders))
            raise DataError(f"{top}: {names} are both the {part} part; keep one")
    chosen = [named[part][0] for part in ("train", "test", "validation") if part in named]
    others = [f for f in _folders(top) if f not in chosen and _below(f, endings, Counter())]
    if others:
        raise DataError(
            f"{top}: {chosen[0].name} is a part of a data set, but {first(f.name for f in others)} beside it has no "
            "class folders or another name; needed: train/cat/1.png and test/cat/1.png, so move or remove it"
        )
    if "train" not in named:
        raise DataError(
            f"{top}: {chosen[0].name} is there, but no training part; add train/, or name folder:{chosen[0]}"
        )
    if len(chosen) > 2 and not is_quiet:
        _LOG.warning("%s: the validation part %s is not read", title, chosen[2].name)
    return chosen[:2]


def lone_test(top: Path) -> Path | None:
    """Return the test part of a folder that has no other part; None: it has one, or is no folder of parts."""
    parts = [folder for folder in _folders(top) if part_of(folder.name) and _folders(folder)] if top.is_dir() else []
    return parts[0] if [part_of(folder.name) for folder in parts] == ["test"] else None


def _class_folders(top: Path) -> dict[str, Path]:
    """Return folders by the class that each is called, which is their name in one Unicode form."""
    folders: dict[str, Path] = {}
    for folder in _folders(top):
        (name,) = texts([folder.name])
        if name in folders:
            raise DataError(f"{top}: two folders are called {name!r}, apart by spaces or Unicode form; rename one")
        folders[name] = folder
    return folders


def _labelled(
    top: Path, labels: Mapping[str, int], endings: frozenset[str], skipped: Counter[str]
) -> list[tuple[Path, int]]:
    files = []
    for name, label in labels.items():
        folder = top / name
        files += [(folder / file, label) for file in _below(folder, endings, skipped)]
    return files


def _below(folder: Path, endings: frozenset[str], skipped: Counter[str]) -> list[PurePath]:
    """Return the images in a folder at any depth, relative to it, in order; other files are counted by ending."""
    found = []
    for at, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not is_hidden(name)]
        for name in files:
            if is_hidden(name):
                continue
            ending = os.path.splitext(name)[1].lower()
            if ending in endings:
                found.append(PurePath(at, name).relative_to(folder))
            else:
                skipped[ending] += 1
    return sorted(found)


def _folders(top: Path) -> list[Path]:
    return sorted(p for p in top.iterdir() if p.is_dir() and not is_hidden(p.name))


def _files(top: Path) -> list[Path]:
    return [p for p in top.iterdir() if p.is_file() and not is_hidden(p.name)]


def _has_images(folder: Path, endings: frozenset[str]) -> bool:
    return any(p.suffix.lower() in endings for p in _files(folder))


def _some(files: list[tuple[Path, int]], top: Path, skipped: Mapping[str, int] = {}) -> list[tuple[Path, int]]:
    if not files:
        there = f" but {', '.join(sorted(filter(None, skipped)))}" if any(skipped) else ""
        raise DataError(f"{top}: no images found{there}; needed: one sub-folder for each class, as in {top}/cat/1.png")
    return files


class _Note(NamedTuple):
    classes: tuple[str, ...]
    folders: tuple[str, ...]
    parts: bool


def _note(top: Path) -> _Note | None:
    """Return what a set's export says of its folders; None: this is none."""
    path = top / NOTE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            content: Any = json.loads(file.read(_NOTE_BYTES))
        if isinstance(content, dict) and "folders" not in content:  # written before there was such a key
            return None
        classes, folders = content["classes"], content["folders"]
        plain = all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in (classes, folders))
        if not plain or len(folders) != len(classes) or any(PurePath(f).name != f for f in folders):
            raise ValueError("classes and folders do not fit")
        return _Note(tuple(classes), tuple(folders), bool(content.get("parts")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: not what an export writes ({error}); export the set anew, or remove the file"
        ) from None

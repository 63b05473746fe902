"""What a class may be called: one rule for data sets, records, files and messages.

A name is a text in Unicode's composed form (NFC) of 1 to 200 characters, without spaces at its ends and without
characters that are not seen: controls, line and paragraph separators, marks that turn the direction of text, other
formatting characters (the joiners of emoji and of Persian stay), and surrogates. No two names of a set are equal.
"""

from __future__ import annotations

import operator
import unicodedata
from collections.abc import Iterable, Mapping, Set
from functools import lru_cache
from typing import Any

from fedcondense.errors import DataError
from fedcondense.plain import hidden

__all__ = ["LONGEST", "MOST_CLASSES", "check_class_names", "class_name", "class_names", "folder_names"]

LONGEST = 200  # characters of a name
MOST_CLASSES = 10_000  # of a set, as files are read by default
_LETTERS = 60  # of a class name in a path


def class_names(given: Iterable[Any]) -> tuple[str, ...]:
    """Return names as texts in normal form.

    Args:
        given: By label: texts, bytes in UTF-8, whole numbers (numpy's and tensors of one number, too), or tuples of
            those, which are joined by a comma: torchvision's ImageNet and Imagenette give the synonyms of a class.

    Raises:
        DataError: A name is none, or holds what is not seen; or two are equal; or there are too many.

    Example:
        >>> class_names([("tench", "Tinca tinca"), b"dog ", 3])
        ('tench, Tinca tinca', 'dog', '3')
    """
    if isinstance(given, str | bytes | Mapping | Set) or not isinstance(given, Iterable):
        raise DataError(f"class names {given!r:.100}; needed: a sequence with a name for each label")
    listed = tuple(given)
    if set(map(type, listed)) == {str}:  # equal texts are one key of a cache; equal values of other types may differ
        return _settled(listed)
    return _named(listed)


def _named(given: tuple[Any, ...]) -> tuple[str, ...]:
    names = tuple(class_name(name, label) for label, name in enumerate(given))
    if len(names) > MOST_CLASSES:
        raise DataError(f"{len(names)} class names; allowed: {MOST_CLASSES}")
    if len(set(names)) < len(names):
        last = {name: label for label, name in enumerate(names)}
        first, second = next((label, last[name]) for label, name in enumerate(names) if last[name] != label)
        again = names[first]
        raise DataError(f"class name {again!r} of labels {first} and {second}; needed: a name of its own for each")
    return names


_settled = lru_cache(maxsize=4)(_named)
"""The parts of a set, and its cuts, mostly have the names of the one before."""


def check_class_names(given: Iterable[Any]) -> tuple[str, ...]:
    """Return names from a file or message, which are in normal form already.

    Raises:
        DataError: One is not.
    """
    listed = list(given)
    names = class_names(listed)
    for label, (name, was) in enumerate(zip(names, listed, strict=True)):
        if type(was) is not str or name != was:
            raise DataError(f"class name {was!r:.100} of label {label} is not in normal form; needed: {name!r}")
    return names


def class_name(given: Any, label: int) -> str:
    """Return one name, of a label, in normal form; what may be given and what is refused is as in `class_names`."""
    if type(given) is str and given.isascii() and given.isprintable() and 0 < len(given) <= LONGEST:
        name = given.strip()  # most names: nothing else can be wrong
    else:
        name = unicodedata.normalize("NFC", _text(given, label)).strip()
    if not name:
        raise DataError(f"class name {given!r:.100} of label {label} is empty; needed: 1 to {LONGEST} characters")
    if len(name) > LONGEST:
        raise DataError(
            f"class name {name[:40]!r}... of label {label} has {len(name)} characters; needed: 1 to {LONGEST}"
        )
    if (unseen := hidden(name)) is not None:
        raise DataError(f"class name {name!a:.100} of label {label} has U+{ord(unseen):04X}, which is not seen")
    return name


def _text(given: Any, label: int) -> str:
    """Return a text for what data sets call their classes."""
    if isinstance(given, str):
        return str(given)
    if isinstance(given, bytes):
        try:
            return given.decode()
        except UnicodeDecodeError:
            raise DataError(f"class name {given!r:.100} of label {label} is not UTF-8; decode it first") from None
    if isinstance(given, tuple | list) and given and not any(isinstance(part, tuple | list) for part in given):
        return ", ".join(_text(part, label).strip() for part in given)
    try:
        return str(given) if isinstance(given, bool) else str(operator.index(given))
    except (TypeError, ValueError, RuntimeError):
        kind = type(given).__name__
        raise DataError(f"class name {given!r:.100} of label {label} is of type {kind}; needed: a text") from None


def folder_names(classes: tuple[str, ...]) -> list[str]:
    """Return a folder name for each class that any file system takes, whatever the class is called, none twice."""
    folders: list[str] = []
    for label, name in enumerate(classes):
        plain = "".join(c if c.isalnum() or c in " -_()&+," else "_" for c in name).strip()[:_LETTERS] or "_"
        while plain.casefold() in {folder.casefold() for folder in folders}:
            plain = f"{plain} {label}"
        folders.append(plain)
    return folders

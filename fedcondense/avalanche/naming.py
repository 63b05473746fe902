"""What a stream's classes are called in a memory, and what a memory's groups are in the stream."""

from __future__ import annotations

from collections.abc import Sequence

from fedcondense.errors import DataError, SettingError

__all__ = ["check_classes", "group_name", "label_and_task"]


def check_classes(classes: Sequence[str]) -> None:
    """Refuse names that would not lead back to their label.

    Raises:
        SettingError: One of them has a character that separates tasks or pieces, or comes twice.
    """
    for name in classes:
        if {"@", "#"} & set(name):
            raise SettingError(f"a class called {name!r}; @ and # separate tasks and pieces, name it without")
    if len(set(classes)) < len(classes):
        raise SettingError(f"classes {', '.join(classes)}; needed: a name of its own for each label")


def group_name(label: int, task: int, classes: Sequence[str] = ()) -> str:
    """Return the name of a class in a memory; the same label in another task is another class.

    Args:
        label: The stream's.
        task: The stream's; 0 where it has none.
        classes: What labels are called; without names, they are numbers.

    Raises:
        DataError: A label without a name.
    """
    if classes and label >= len(classes):
        raise DataError(f"label {label} of a stream whose classes are {', '.join(classes)}; name all of them, by label")
    name = classes[label] if classes else str(label)
    return f"{name}@{task}" if task else name


def label_and_task(name: str, classes: Sequence[str] = ()) -> tuple[int, int]:
    """Return the arguments of `group_name`; the text after ``#`` belongs to the memory.

    >>> label_and_task("7"), label_and_task("7@2#5"), label_and_task("oak@2", ("elm", "oak"))
    ((7, 0), (7, 2), (1, 2))

    Raises:
        ValueError: It is none of its names.
    """
    label, _, task = name.partition("#")[0].partition("@")
    return (classes.index(label) if classes else int(label)), int(task or 0)

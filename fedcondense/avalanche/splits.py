"""Whether a data set can be divided by classes into equal experiences: known from its counts, before Avalanche is."""

from __future__ import annotations

from collections.abc import Sequence

from fedcondense.data.layouts import first
from fedcondense.errors import DataError, SettingError

__all__ = ["check_split"]


def check_split(
    name: str, classes: Sequence[str], train: Sequence[int], test: Sequence[int], n_experiences: int
) -> None:
    """Refuse what no class-incremental stream of equal experiences can be made of.

    Args:
        name: What errors call the data set.
        classes: The class names.
        train: How many images each class has to learn from.
        test: How many it has to test on.
        n_experiences: Into how many experiences the classes go.

    Raises:
        SettingError: The number of experiences does not divide that of the classes.
        DataError: A class has no images in one of the parts.
    """
    count = len(classes)
    if type(n_experiences) is not int or n_experiences < 1 or count % n_experiences:
        fitting = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise SettingError(
            f"{name}: {n_experiences} experiences for {count} classes; needed: as many classes in each, so give a "
            f"number that divides {count}: {fitting}"
        )
    for part, use, counts in (("train", "to learn from", train), ("test", "to test on", test)):
        if lacking := [label for label, n in zip(classes, counts, strict=True) if not n]:
            raise DataError(
                f"{name}: {len(lacking)} of {count} classes have no images {use} ({first(lacking)}); needed: some of "
                f"each class in both parts, so add images to the {part} part, or leave the class out of the other; "
                "where there is no test part, a class needs five images"
            )

"""What a memory may take: settings that can work together, and the share of a group within a number of bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from fedcondense.errors import SettingError
from fedcondense.memory.makers import Maker
from fedcondense.memory.updates import UPDATES

__all__ = ["check_settings", "largest_share"]


def check_settings(
    images: int,
    make: Maker,
    groups: int | None,
    update: str,
    real_fraction: float,
    minimum: int,
    max_bytes: int | None,
) -> None:
    """Refuse settings of a `Memory` that would fail within the stream.

    Raises:
        SettingError: They would; the message says which, and what to give.
    """
    if images < 1:
        raise SettingError(f"a memory of {images} images; needed: 1 or more")
    if groups is not None and not 1 <= groups <= images:
        raise SettingError(f"{images} stored images for {groups} groups; give each at least one")
    if update not in UPDATES:
        raise SettingError(f"update {update!r}; needed: one of {', '.join(UPDATES)}")
    if (check := getattr(make, "check", None)) is not None:
        check()
    whole = "share codes" if getattr(make, "shared", False) else ""
    whole = whole or ("have soft labels" if getattr(make, "soft", False) else "")
    if whole and UPDATES[update].leaves_out_images(None if max_bytes else groups):  # bytes make shares vary
        raise SettingError(
            f"update {update!r} leaves out stored images, but those of {make!r} {whole}: choose update='recondense', "
            "or a parametrization that shares none ('pixels', 'multi-formation') and hard labels"
        )
    if not 0 <= real_fraction <= 1:
        raise SettingError(f"real_fraction {real_fraction!r}; needed: a share from 0 to 1")
    if minimum < 1:
        raise SettingError(f"a minimum of {minimum} images; needed: 1 or more")
    if max_bytes is not None and max_bytes < 1:
        raise SettingError(f"max_bytes {max_bytes}; needed: 1 or more, or None")


def largest_share(most: int, max_bytes: int, groups: int, nbytes: Callable[[int], int]) -> int:
    """Return the largest number of stored images per group whose bytes are within a bound.

    Args:
        most: The largest that comes into question.
        max_bytes: The bound.
        groups: How many there are, for the message.
        nbytes: The bytes for a number of images per group; it grows with that.

    Raises:
        SettingError: One image per group is too much.
    """

    def least(share: int) -> int:
        try:
            return nbytes(share)
        except SettingError:  # too few for a parametrization: more may do
            return 0

    share = bisect_right(range(1, most + 1), max_bytes, key=least)
    if share < 1:
        raise SettingError(
            f"a memory of {max_bytes} bytes cannot hold {groups} groups: with one image each, its file takes "
            f"{nbytes(1)} bytes; give it that at least, or fewer groups"
        )
    return share

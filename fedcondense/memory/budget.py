"""What a memory may take: settings that can work together, and the share of a group within a number of bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedcondense.errors import SettingError
from fedcondense.memory.updates import UPDATES
from fedcondense.sets.codecs import codec_named

if TYPE_CHECKING:
    from fedcondense.memory.memory import Memory

__all__ = ["BALANCES", "check_settings", "largest_share", "largest_within", "takes_whole_classes"]

BALANCES = ("class", "reservoir")
_TRIES = 12


def takes_whole_classes(codec: str) -> bool:
    """Say whether images of a class can only be left out all together, where a codec of this name packs them."""
    found = codec_named(codec)
    return found is not None and found.by_class


def check_settings(memory: Memory) -> None:
    """Refuse settings of a memory that would fail within the stream.

    Raises:
        SettingError: They would; the message says which, and what to give.
    """
    images, groups, make, update, max_bytes = memory.images, memory.groups, memory.make, memory.update, memory.max_bytes
    if images is None and max_bytes is None:
        raise SettingError("a memory of neither images nor max_bytes; give one of them")
    if images is not None and images < 1:
        raise SettingError(f"a memory of {images} images; needed: 1 or more")
    if groups is not None and (groups < 1 or (images is not None and groups > images)):
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
    is_cut = {memory.codec: UPDATES[update].leaves_out_images(groups)}
    is_cut[memory.real_codec] = is_cut.get(memory.real_codec, False) or (memory.real_fraction > 0 and groups is None)
    for codec, left_out in is_cut.items():
        if takes_whole_classes(codec) and left_out:
            raise SettingError(
                f"images have to be left out one by one (update {update!r}), and {codec} leaves out whole classes "
                "alone: choose jpeg-10 (or another quality), bits-2 or palette-16, or give the number of groups"
            )
    if memory.balance not in BALANCES:
        raise SettingError(f"balance {memory.balance!r}; needed: one of {', '.join(BALANCES)}")
    if not 0 <= memory.real_fraction <= 1:
        raise SettingError(f"real_fraction {memory.real_fraction!r}; needed: a share from 0 to 1")
    if memory.minimum < 1:
        raise SettingError(f"a minimum of {memory.minimum} images; needed: 1 or more")
    samples, seconds = memory.gathered.samples, memory.gathered.seconds
    if samples is not None and (type(samples) is not int or samples < 1):
        raise SettingError(f"every_samples {samples!r}; needed: a whole number from 1, or None")
    if seconds is not None and not seconds > 0:
        raise SettingError(f"every_seconds {seconds!r}; needed: a number above 0, or None")


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


def largest_within(most: int, bound: int, nbytes: Callable[[int], int], first: int | None = None) -> int:
    """Return a number of images that takes no more than a bound; near the largest, to one in a hundred or of bytes.

    Each try costs as much as encoding does, so there are twelve at most: the next number lies where a straight line
    through the nearest known sizes meets the bound.

    Args:
        most: The largest number that comes into question, 1 or more.
        bound: In bytes.
        nbytes: The bytes of so many images; about linear.
        first: The number to begin with; None: the largest.

    Returns:
        Such a number, whose bytes were asked for; 0 if that of one image is more than the bound, or none was found.
    """
    low, at_low, high, at_high = 0, 0, most + 1, 0
    guess = most if first is None else min(first, most)
    for left in range(_TRIES, 0, -1):
        if (found := nbytes(guess)) <= bound:
            low, at_low = guess, found
        else:
            high, at_high = guess, found
        if high - low <= max(1, low // 100) or bound - bound // 100 <= found <= bound:
            break
        if low and at_high:
            guess = low + int((bound - at_low) * (high - low) / max(1, at_high - at_low))
        else:
            guess = int(bound * (low or high) / max(1, at_low or at_high))
        guess = 1 if not low and left == 2 else min(max(guess, low + 1), high - 1)
    return low

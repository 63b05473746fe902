"""How many images' bytes each class gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fedcondense.ambient import in_own_state
from fedcondense.errors import DataError, SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from fedcondense.data.images import Spec

__all__ = ["Shares", "images_per_class"]


class _Counted(Protocol):
    """Data, or any holder of them."""

    @property
    def spec(self) -> Spec:
        """What the images are."""

    @property
    def counts(self) -> Tensor:
        """How many images each class has, (K,) int64 on the CPU."""


class Shares(NamedTuple):
    """What each class gets, and which classes get less than was asked for."""

    images: list[int]  # how many images' bytes, by label; 0 for an absent class
    short: Mapping[str, int]  # the same of classes that are too small for `ipc`, by name
    warning: str  # the same as a line for a log; empty if no class is short


@in_own_state
def images_per_class(holder: _Counted, ipc: int, limit: float = 1.0, given: str = "") -> Shares:
    """Give each class `ipc` images, or as many as `limit` times its records, at least one.

    Nothing is logged here: callers that speak to a user log `warning`.

    Args:
        holder: Who has the records, or the data themselves; classes may be absent.
        ipc: Images per class.
        limit: The largest share of a class's records.
        given: What the caller was given where `ipc` only follows from it, such as ``"a budget of 20,000 bytes"``: the
            warning speaks of that.

    Raises:
        SettingError: `ipc` is no whole number from 1, or `limit` is not in (0, 1].
        DataError: There are no images.

    >>> from fedcondense import load_data
    >>> few = load_data("digits").train.subset(range(12))
    >>> images_per_class(few, 1).images, images_per_class(few, 2).short
    ([1, 1, 1, 1, 1, 1, 1, 1, 1, 0], {'1': 1, '4': 1, '5': 1, '6': 1, '7': 1, '8': 1})
    """
    if not hasattr(holder, "counts"):
        given = type(holder).__name__
        raise SettingError(f"a {given} in the place of data; needed: the Data of one part, as load_data(...).train")
    if type(ipc) is not int or ipc < 1:
        raise SettingError(f"ipc {ipc!r}; needed: a whole number of images per class, 1 or more")
    if not 0 < limit <= 1:
        raise SettingError(f"limit {limit!r}; needed: a share of the records of a class, above 0 and up to 1")
    counts = holder.counts.tolist()
    if not sum(counts):
        raise DataError(f"{holder.spec.name}: no images to condense; give a split or a client that has some")
    images = [min(ipc, max(1, int(limit * n))) if n else 0 for n in counts]
    short = {holder.spec.classes[c]: n for c, n in enumerate(images) if 0 < n < ipc}
    allowed = "the records" if limit == 1 else f"{limit:g} of the records"
    told = ", ".join(f"{name} ({n})" for name, n in short.items())
    many = f"{given} has room for {ipc} images per class, which is" if given else f"ipc {ipc} is"
    text = f"{many} more than {allowed} of some classes; they get what is there: {told}"
    return Shares(images, short, text if short else "")

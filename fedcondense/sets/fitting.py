"""Making a set fit a number of bytes as it is written: header, labels, record and room for its evaluation included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedcondense.ambient import in_own_state
from fedcondense.budgets import Budget, budget_bytes, read_budget
from fedcondense.errors import SettingError
from fedcondense.sets.codecs import Bits, codec_named, name_of
from fedcondense.sets.forecast import widest_evaluation
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["LEAST_KEPT", "Within", "amount_of", "coarser", "finer", "fit_within"]

LEAST_KEPT = 0.75
"""The share of images that is left before all of them in fewer bits are the better choice: a guess, with a margin for
images that were condensed together. Sets that were condensed apart say 0.5 (Fashion-MNIST) to 0.6 (CIFAR-10): between
one and ten images per class in two bits accuracy grows by 6.7 and 11 points, and one bit takes 2.2 and 2.4 of them."""


@dataclass(frozen=True)
class Within:
    """A budget in bytes, in the place of images per class: `condense(data, Within("20 kB", seeds=10))`.

    ``"20 kB"`` alone is ``Within("20 kB")``.

    Args:
        nbytes: What the file may take, written as `read_budget` reads it; kept as a whole number of bytes.
        codec: How images are stored, by name; None: as the rate rule says.
        network: The network that will evaluate the set, if its name has more than 24 characters.
        seeds: How many networks the evaluation will train; 0: none is added to the file, and no room is left for one.
        ipc: The most images of a class, counted in uncompressed ones; None: as many as fit.
    """

    nbytes: int | str | Budget
    codec: str | None = None
    network: str = ""
    seeds: int = 3
    ipc: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "nbytes", budget_bytes(self.nbytes))
        if self.codec is not None:
            codec_named(self.codec)

    @property
    def most(self) -> int:
        """The bound, in bytes."""
        assert isinstance(self.nbytes, int)
        return self.nbytes

    def evaluation(self, data: str) -> dict[str, Any] | None:
        """Return the widest evaluation that there must be room for; None if there will be none."""
        return widest_evaluation(data, self.network, self.seeds) if self.seeds else None


def amount_of(
    ipc: int | str | Within | None, budget: int | str | Budget | Within | None = None, codec: str | None = None
) -> int | Within:
    """Return images per class, or a budget, of which callers give one.

    Args:
        ipc: A whole number of images per class, or a budget with its unit; None: 10, if there is no budget.
        budget: A budget.
        codec: Of the budget.

    Raises:
        SettingError: Both are given, or a text without a unit, which may be meant as either.
    """
    if ipc is not None and budget is not None:
        said = f"{budget.most} B" if isinstance(budget, Within) else budget
        raise SettingError(f"ipc {ipc!r:.100} and budget {said!r:.100}; give one of them")
    given = ipc if budget is None else budget
    if given is None:
        return 10
    if isinstance(ipc, str) and not read_budget(ipc, "ipc or budget").has_unit:
        raise SettingError(f"ipc {ipc!r}; needed: images per class as a number, or a budget with its unit: '{ipc} B'")
    if isinstance(given, str | Budget) or (budget is not None and not isinstance(given, Within)):
        return Within(given, codec)
    if isinstance(given, Within) and codec is not None:
        return replace(given, codec=codec)
    return given


def finer(codec: str) -> list[str]:
    """Return the codecs of more bits than one of some bits, the most last; none for others."""
    found = codec_named(codec)
    return [name_of(Bits(b, found.scale)) for b in range(found.bits + 1, 7)] if isinstance(found, Bits) else []


def coarser(codec: str) -> list[str]:
    """Return the codecs of fewer bits than one of some bits, the fewest last; none for others."""
    found = codec_named(codec)
    return [name_of(Bits(b, found.scale)) for b in range(found.bits - 1, 0, -1)] if isinstance(found, Bits) else []


@in_own_state
def fit_within(synthetic: SyntheticSet, within: Within, codec: str) -> SyntheticSet:
    """Encode a set so that its file, with an evaluation to come, takes at most a number of bytes.

    What is tried, in this order, and the first that fits is taken:

    1. all images in the codec, or in more bits a value if those fit too (only if the budget names no codec);
    2. fewer images in the codec, while three quarters are left;
    3. all images in fewer bits (only if the budget names no codec), or three quarters of them;
    4. fewer images in the fewest bits.

    Where images are left out, it is the last of the class that has most of them, of equal ones the last class.

    Args:
        synthetic: The set as it was condensed or chosen; nothing packs it yet.
        within: The bound, and what is left room for.
        codec: To begin with.

    Raises:
        SettingError: Not even one image of each class fits; the message says how many bytes do.
    """
    evaluation = within.evaluation(synthetic.name)

    def size(one: SyntheticSet) -> int:
        return (one if evaluation is None else one.with_evaluation(evaluation)).nbytes

    whole = synthetic.recode(codec)
    if size(whole) <= within.most:
        for better in finer(codec) if within.codec is None and whole.parts[0].codec == codec else []:
            tried = synthetic.recode(better)
            if size(tried) > within.most:
                break
            whole = tried
        return whole
    steps = [codec, *(coarser(codec) if within.codec is None else [])]
    least = size(whole)
    for least_kept, names in ((LEAST_KEPT, steps), (0.0, steps[-1:])):
        for name in names:
            cuts = _Cuts(synthetic, name)
            fewest = max(cuts.fewest, int(-(-least_kept * cuts.most // 1)))
            if (found := _largest(cuts, fewest, size, within.most)) is not None:
                return found
            least = size(cuts.of(fewest))
    raise SettingError(
        f"{synthetic.name}: {within.most} bytes cannot hold one image of each of {len(synthetic.classes)} classes by "
        f"{steps[-1]!r} with record and evaluation; needed: {least} bytes"
    )


def _largest(cuts: _Cuts, fewest: int, size: Any, nbytes: int) -> SyntheticSet | None:
    """Return the set of the most images that fits, by bisection; what is returned was measured. None if none does."""
    found, low, high = None, fewest, cuts.most
    while low <= high:
        middle = (low + high) // 2
        tried = cuts.of(middle)
        if size(tried) <= nbytes:
            found, low = tried, middle + 1
        else:
            high = middle - 1
    return found


class _Cuts:
    """A set with fewer and fewer images, in a codec.

    Args:
        synthetic: All of it.
        codec: A name.
    """

    def __init__(self, synthetic: SyntheticSet, codec: str) -> None:
        self._synthetic, self._codec = synthetic, codec
        counts: Counter[str] = Counter()
        for part in synthetic.parts:
            found = torch.bincount(part.labels(), minlength=len(part.record.classes)).tolist()
            counts.update(dict(zip(part.record.classes, found, strict=True)))
        self._counts = {name: n for name, n in counts.items() if n}
        self.most = sum(self._counts.values())
        separable = all(part.is_separable for part in synthetic.parts)
        self.fewest = len(self._counts) if separable else self.most
        self._left_out = list(_last_first(self._counts)) if separable else []

    def of(self, images: int) -> SyntheticSet:
        """Return the set with a number of images, encoded from what it was."""
        left_out = Counter(self._left_out[: self.most - images])
        if not left_out:
            return self._synthetic.recode(self._codec)
        most = {name: n - left_out[name] for name, n in self._counts.items()}
        cut = self._synthetic.restrict(self._synthetic.classes, most)
        assert cut is not None
        return cut.recode(self._codec)


def _last_first(counts: Mapping[str, int]) -> Iterator[str]:
    """Give the class that loses its last image next, until each has one."""
    left = dict(counts)
    for level in range(max(left.values()), 1, -1):
        for name in reversed(list(left)):
            if left[name] == level:
                left[name] -= 1
                yield name

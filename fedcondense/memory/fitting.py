"""A memory's shares within its bytes: sizes are forecast, or measured where they follow from what is encoded.

With codecs the order is: real images, as many as fit their part of the bytes; then one set of as many condensed images
as a forecast allows; then as many of these as keep the file within the bound, each try encoded from the originals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fedcondense.ambient import in_own_state
from fedcondense.errors import SettingError
from fedcondense.memory.budget import largest_share, largest_within
from fedcondense.memory.contents import Making, Shares
from fedcondense.memory.stored import count_stored, image_bytes, join
from fedcondense.sets.codecs import RAW
from fedcondense.sets.parts import Part, to_storage
from fedcondense.sets.synthetic import SyntheticSet

if TYPE_CHECKING:
    from fedcondense.memory.memory import Memory

__all__ = ["fit", "sampled_rate"]

_SAMPLE = 32  # stored images of a group that are encoded to see how many bytes they take
_BUSY = 1.6  # bytes of a coded condensed image by those of a real one: 1.5 (Fashion-MNIST) to 1.9 (CIFAR-10), 2 bits
_AGAIN = 5  # times that sets of which no image can be left out are made


def fit(memory: Memory, ready: Sequence[str], waiting: int) -> Memory:
    """Return a copy of a memory with sets of the groups that are ready, whose file is within `max_bytes`.

    Args:
        memory: One with `max_bytes`; it stays as it is.
        ready: Groups of which enough images wait.
        waiting: Images that may wait.

    Raises:
        SettingError: One image per group is too much.
    """
    return (_fit_coded if memory.fits_coded else _fit_plain)(memory, ready, waiting)


def _fit_plain(memory: Memory, ready: Sequence[str], waiting: int) -> Memory:
    """Fit sets whose sizes are known before they are made."""
    bound, groups = _bound(memory), len(memory.names)
    cannot = f"a memory of {bound} bytes cannot hold {groups} groups of the sets that {memory.make!r} makes"
    share = largest_share(
        memory.share(groups),
        bound,
        groups,
        lambda share: _blank(memory, ready, memory.shares(share), waiting).total_bytes,
    )
    while share:
        trial = memory.copy()
        try:
            trial.remake(ready, memory.shares(share), trial.made)
        except SettingError as refused:  # so few images leave no room for what makes them
            raise SettingError(f"{cannot}: {refused}") from None
        if trial.total_bytes <= bound:
            return trial
        share -= 1  # the maker took more than it had said, or says nothing
    raise SettingError(f"{cannot}; give it more")


def _fit_coded(memory: Memory, ready: Sequence[str], waiting: int) -> Memory:
    """Fit sets whose sizes follow from what is encoded."""
    bound, most = _bound(memory), memory.share(len(memory.names))
    groups = max(memory.groups or 0, len(memory.names))
    whole = groups / len(memory.names)  # images of all groups by those of the groups that are known
    one = Shares(int(memory.real_fraction < 1), int(memory.real_fraction > 0))
    least, bare = (_blank(memory, ready, one, left) for left in (waiting, None))
    ahead = _beside_images(least) - _beside_images(bare)
    trials: dict[Shares, Memory] = {}
    sizes: list[int] = []

    def size(shares: Shares, make: Making, again: Sequence[str]) -> int:
        trial = trials[shares] = memory.copy()
        trial.remake(ready, shares, make, again)
        sizes.append(trial.total_bytes + ahead + int((whole - 1) * _images(trial)))
        return sizes[-1]

    def found(shares: Shares) -> Memory:
        if shares in trials and (shares.made or (memory.real_fraction == 1 and shares.real)):
            return trials[shares]
        raise SettingError(
            f"a memory of {bound} bytes cannot hold {len(memory.names)} groups: with about one image each, and what is "
            f"to come, its file takes {min(sizes)} bytes; give it that at least, or fewer groups"
        )

    free = bound - _beside_images(least)
    real = _real_share(memory, ready, most, free, whole)
    if memory.real_fraction == 1:
        first = _of_real(memory)
        return found(Shares(0, largest_within(most, bound, lambda n: size(Shares(0, n), memory.made, ()), first)))
    free -= int(whole * image_bytes(memory.chosen(ready, real)))
    most = max(1, most - real if memory.images is not None else most // memory.make.per_image)
    asked = min(most, max(1, int(free / (_rate(memory, ready) * groups))))
    again = memory.made_again(ready, asked)
    made = memory.made(again, asked) if again else None
    if made is None or all(part.is_separable for part in made.parts):
        cut = _first_of(made)
        return found(Shares(largest_within(asked, bound, lambda n: size(Shares(n, real), cut, again)), real))
    for _ in range(_AGAIN):
        if (taken := size(Shares(asked, real), memory.made, again)) <= bound:
            return trials[Shares(asked, real)]
        asked = max(1, min(asked - 1, int(0.98 * asked * bound / taken)))
    return found(Shares(0, real))


def _bound(memory: Memory) -> int:
    assert memory.max_bytes is not None
    return memory.max_bytes


def _first_of(made: SyntheticSet | None) -> Making:
    """Return what makes a set by leaving out images of one that is made."""

    def make(names: Sequence[str], share: int) -> SyntheticSet:
        assert made is not None
        cut = made.restrict(names, dict.fromkeys(names, share))
        assert cut is not None
        return cut

    return make


def _real_share(memory: Memory, ready: Sequence[str], most: int, free: int, whole: float) -> int:
    """Return how many real images of each group fit into their part of the bytes."""
    if not 0 < memory.real_fraction < 1:
        return 0
    bound = int(memory.real_fraction * free / whole)
    return largest_within(most, bound, lambda share: image_bytes(memory.chosen(ready, share)), _of_real(memory))


def _of_real(memory: Memory) -> int:
    """Return how many real images of a group to try first: as many as there are."""
    return max([1, *count_stored([memory.real]).values()]) if memory.real is not None else _SAMPLE


def _rate(memory: Memory, ready: Sequence[str]) -> float:
    """Return the bytes of a stored image that the maker makes: of those that are there, else of a sample."""
    there = [part for one in memory.sets for part in one.parts]
    beside = memory.beside * memory.make.per_image
    if there and not any(part.parametrization.shared for part in there):
        soft = sum(part.targets.nbytes for part in there if part.targets.ndim == 2)
        return beside + (soft + sum(part.code_bytes for part in there)) / sum(part.stored for part in there)
    return beside + sampled_rate(memory, ready)


@in_own_state
def sampled_rate(memory: Memory, ready: Sequence[str]) -> float:
    """Return the bytes that a stored image of a group will take, by encoding some of its real images.

    Condensed images are busier: as many bytes as real ones take, and more than half as much again, but never more than
    they take without a codec.
    """
    assert memory.spec is not None
    plain = float(torch.Size(memory.spec.shape).numel())
    part = memory.blank(ready, 1).parts[0] if ready else None
    if part is None or part.parametrization.shared or set(part.parametrization.storage.values()) != {torch.uint8}:
        return plain
    each = part.parametrization.start_count(1)
    pieces = [memory.waiting[name][: each * _SAMPLE] for name in ready]
    images = torch.cat(
        [piece.repeat(-(-each // len(piece)), 1, 1, 1)[: max(1, len(piece) // each) * each] for piece in pieces]
    )
    codes, targets = part.parametrization.encode(images.float() / 255, torch.ones(len(images), 1))
    codes, _ = to_storage(codes, targets, part.parametrization)
    labels = torch.zeros(len(targets), dtype=torch.uint8)
    sample = SyntheticSet([Part(codes, labels, part.parametrization, part.record)])
    found = image_bytes(sample.recode(memory.codec)) / len(targets)
    busy = _BUSY if part.record.steps else 1.0
    soft = part.targets.nbytes / part.stored if part.targets.ndim == 2 else 0.0
    return min(plain, busy * found) + soft


def _images(memory: Memory) -> int:
    """Return the bytes of all images but those that wait, and of what is kept beside them."""
    stored = join([*memory.sets, memory.real])
    return image_bytes(stored) + memory.beside * (0 if stored is None else len(stored))


def _beside_images(memory: Memory) -> int:
    return memory.total_bytes - _images(memory)


def _blank(memory: Memory, ready: Sequence[str], shares: Shares, waiting: int | None) -> Memory:
    """Return a copy as large as it would be with shares, before anything is made; nothing in it is encoded.

    Args:
        memory: What there is.
        ready: Groups of which enough images wait.
        shares: What each group gets.
        waiting: Images that may wait; there are places for these and for groups that are still to come, where their
            number is given. None: for neither.
    """
    trial = memory.copy()
    trial.codec = RAW
    trial.remake(ready, shares, trial.blank)
    if waiting is None:
        return trial
    assert memory.spec is not None
    more, at_once = (memory.groups or 0) - len(memory.names), max(1, len(ready))
    for begin in range(0, more, at_once):
        names = [f"group {k}" for k in range(begin, min(more, begin + at_once))]
        trial.sets.append(trial.blank(names, max(1, shares.made)))
    left = waiting - sum(map(len, trial.waiting.values())) if memory.minimum > 1 else 0
    if left > 0:  # of one more group, with the longest name there is
        image = torch.zeros(1, *memory.spec.shape, dtype=torch.uint8).expand(left, -1, -1, -1)
        trial.waiting[max(memory.names, key=len) + "+"] = image
    return trial

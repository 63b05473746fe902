"""The rate rule: how many images, and in how many bits a value, a number of bytes is best spent on.

The rule, and the measurements that it rests on:

1. **Two bits a value, and as many images as fit.** On condensed images, two bits with levels of least squared error
   lose 0.2 (Fashion-MNIST) and 0.5 points (CIFAR-10) of what 8 bits reach, in 0.15 to 0.22 of the bytes; one bit loses
   2 to 3 points in half of those. Three bits take twice the bytes of two, which more images use better
   (`experiments/coded.md` has the table).
2. **One bit** only where not even one image of each class fits in two.
3. **More bits** once every class has as many images as it may have (`limit`).
4. **Four small images in the place of one** (`multi-formation`), unless the caller names a parametrization, where the
   sides are even and at least 16 pixels.

How many images fit is not known before they are condensed. `Expected` says what a stored image is expected to take: by
a trial set of the start's images with noise (`on_trial`), or without one as most images do. `fit_within` holds the
bound in any case; too low an estimate costs images that were condensed, too high a one leaves bytes unused.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

from fedcondense.ambient import in_own_state
from fedcondense.contract import Parametrization
from fedcondense.data.images import Spec
from fedcondense.errors import DataError, SettingError
from fedcondense.parametrizations import MultiFormation, Pixels
from fedcondense.sets.codecs import RAW, codec_named
from fedcondense.sets.fitting import Within, finer
from fedcondense.sets.forecast import file_bytes, largest_file
from fedcondense.sets.parts import Record
from fedcondense.sets.recoding import takes_codecs

__all__ = ["LONGEST", "Expected", "Rate", "default_parametrization", "rate_at", "rate_of", "typical"]

_TWO, _ONE = "bits-2", "bits-1"
_SIDE = 16  # pixels; smaller images have nothing to lose
_TYPICAL = 0.9  # of the bytes that no entropy coder makes smaller
_PICTURE = 0.4  # of raw bytes, where a codec has no bound
LONGEST = 9999999.9  # seconds of a record, as wide as they may become


class Expected(NamedTuple):
    """What the codes of a set are expected to take: `fixed` bytes, and `each` for each image's worth."""

    fixed: float
    each: float


class Rate(NamedTuple):
    """How a number of bytes is spent.

    Args:
        ipc: The most images of a class.
        codec: What they are stored in, by name.
        images: How many each class gets, by label, counted in uncompressed ones; larger classes get the last ones.
        nbytes: What the file is expected to take, with its evaluation.
        most: What it takes at most before anything is left out; None where the codec cannot say.
    """

    ipc: int
    codec: str
    images: tuple[int, ...]
    nbytes: int
    most: int | None


def default_parametrization(shape: tuple[int, int, int]) -> Parametrization:
    """Return how images of (C, H, W) are stored under a budget, unless somebody says otherwise."""
    even = shape[1] % 2 == shape[2] % 2 == 0
    return MultiFormation(2) if even and min(shape[1:]) >= _SIDE else Pixels()


def typical(codec: str, parametrization: Parametrization, shape: tuple[int, int, int]) -> Expected:
    """Return what an image's worth of codes takes where nothing is known of the images.

    Args:
        codec: A name.
        parametrization: Of the codes.
        shape: (C, H, W) of an image.
    """
    found = codec_named(codec)
    raw = float(shape[0] * shape[1] * shape[2])
    bound = getattr(found, "bound", None)
    if found is None or not takes_codecs(parametrization):
        return Expected(0.0, raw)
    return Expected(0.0, _PICTURE * raw if bound is None else _TYPICAL * (bound((8, *shape)) - bound((4, *shape))) / 4)


@in_own_state
def rate_of(
    spec: Spec,
    counts: Sequence[int],
    within: Within | str | int,
    parametrization: Parametrization | None = None,
    *,
    limit: float = 1.0,
    record: Record | None = None,
    expect: Callable[[str], Expected] | None = None,
    soft: bool = False,
) -> Rate:
    """Return how many images per class to condense for a budget, and in which codec to store them.

    Args:
        spec: What the images are.
        counts: How many records each class has, by label; 0 for an absent one.
        within: The budget. If it names a codec, that one is taken.
        parametrization: Of the codes; None: the rule's.
        limit: The largest share of a class's records whose bytes its images may take, as `condense` has it.
        record: The set's, whose header is counted; None: one of usual length.
        expect: What the codes of a set in a codec are expected to take; None: `typical`. Codes that are shared between
            images, or have soft labels, cannot be left out, and are held to the most that they can take instead.
        soft: Whether labels are learned, and stored as probabilities.

    Raises:
        DataError: There are no records.
        SettingError: The budget is too small for one image of each class; the message says what is not.

    >>> digits = Spec("digits", (1, 28, 28), tuple("0123456789"), (0.5,), (0.5,))
    >>> rate = rate_of(digits, [500] * 10, "20 kB")
    >>> rate.ipc, rate.codec, rate.nbytes <= 20_000
    (11, 'bits-2', True)
    """
    within = within if isinstance(within, Within) else Within(within)
    counts = [int(n) for n in counts]
    if not any(counts):
        raise DataError(f"{spec.name}: no images to condense; give a split or a client that has some")
    parametrization = parametrization or default_parametrization(spec.shape)
    codecs = [within.codec] if within.codec else [_TWO, _ONE]
    if not takes_codecs(parametrization):
        codecs = [RAW]
    wide = replace(record or _usual(spec, counts), seconds=LONGEST)
    cost = _Cost(within, parametrization, wide, tuple(counts), limit, expect, soft)
    if (needed := cost.surely(cost.fewest, codecs[-1])) > within.most:
        raise SettingError(
            f"a budget of {within.most} bytes is too small for one image of each of {sum(n > 0 for n in counts)} "
            f"classes of {spec.name} in {codecs[-1]!r}, with record and room for an evaluation; needed: {needed} bytes"
        )
    totals = range(cost.fewest, cost.largest + 1)
    for codec in codecs:
        if fitting := bisect_right(totals, within.most, key=partial(cost.planned, codec=codec)):
            break
    total = totals[max(0, fitting - 1)]
    for more in finer(codec) if total == cost.largest and not within.codec else []:
        if cost.planned(total, more) > within.most:
            break
        codec = more
    images = cost.images(total)
    return Rate(max(images), codec, images, cost.expected(total, codec), cost.most(total, codec))


@in_own_state
def rate_at(
    images: Sequence[int],
    codec: str,
    parametrization: Parametrization,
    record: Record,
    *,
    expect: Callable[[str], Expected] | None = None,
    soft: bool = False,
) -> Rate:
    """Return what a number of images in a codec takes, without an evaluation.

    Args:
        images: How many each class gets, by label, counted in uncompressed ones.
        codec: A name.
        parametrization: Of the codes.
        record: The set's, whose header is counted.
        expect: As in `rate_of`.
        soft: As in `rate_of`.
    """
    record = replace(record, ipc=max(images), seconds=LONGEST)
    fixed, each = expect(codec) if expect else typical(codec, parametrization, record.shape)
    most = largest_file(parametrization, record, images, codec, soft=soft)
    found = file_bytes(parametrization, record, images, codec, fixed + each * sum(images), soft=soft)
    return Rate(max(images), codec, tuple(images), found if most is None else min(found, most), most)


@dataclass(frozen=True)
class _Cost:
    """What a file takes, by how many images per class it has and in which codec."""

    within: Within
    parametrization: Parametrization
    record: Record
    counts: tuple[int, ...]
    limit: float
    expect: Callable[[str], Expected] | None
    soft: bool

    @cached_property
    def _order(self) -> list[int]:
        """The class of each image, in the order in which they are granted: one each, then the larger classes first."""
        most = sum(self.counts) if self.within.ipc is None else self.within.ipc
        caps = [min(most, max(1, int(self.limit * n))) if n else 0 for n in self.counts]
        falling = sorted(range(len(caps)), key=lambda c: -self.counts[c])
        return [c for level in range(max(caps)) for c in falling if level < caps[c]]

    @property
    def fewest(self) -> int:
        """One image for each class that there is."""
        return sum(n > 0 for n in self.counts)

    @property
    def largest(self) -> int:
        """As many as there may be."""
        return len(self._order)

    def images(self, total: int) -> tuple[int, ...]:
        """Return how many images each class gets."""
        granted = Counter(self._order[:total])
        return tuple(granted[c] for c in range(len(self.counts)))

    def most(self, total: int, codec: str) -> int | None:
        """Return what cannot be passed; None where the codec cannot say."""
        found: int | None = self._file(largest_file, total, codec)
        return found

    def expected(self, total: int, codec: str) -> int:
        """Return what is expected, which is no more than what cannot be passed."""
        fixed, each = (self.expect or self._typical)(codec)
        found: int = self._file(partial(file_bytes, code_bytes=fixed + each * total), total, codec)
        most = self.most(total, codec)
        return found if most is None else min(found, most)

    def surely(self, total: int, codec: str) -> int:
        """Return what is held to be enough: what cannot be passed, or twice what is expected."""
        most = self.most(total, codec)
        return 2 * self.expected(total, codec) if most is None else most

    def planned(self, total: int, codec: str) -> int:
        """Return what has to be within the budget: of sets that nothing can be left out of, what is surely enough."""
        return (self.surely if self.soft or self.parametrization.shared else self.expected)(total, codec)

    def _typical(self, codec: str) -> Expected:
        return typical(codec, self.parametrization, self.record.shape)

    def _file(self, forecast: Callable[..., Any], total: int, codec: str) -> Any:
        images, evaluation = self.images(total), self.within.evaluation(self.record.data)
        record = replace(self.record, ipc=max(images))
        try:
            return forecast(self.parametrization, record, images, codec, evaluation=evaluation, soft=self.soft)
        except SettingError:  # too few images for a parametrization: more may do
            if total == self.largest:
                raise
            return 0


def _usual(spec: Spec, counts: Sequence[int]) -> Record:
    """Return a record of usual length."""
    spoken = (spec.name, spec.shape, spec.classes, spec.mean, spec.std, "mmd-ridge")
    usual = Record(*spoken, seed=10**9, network="convnet3-w128", start="gaussian", steps=10_000, counts=tuple(counts))
    return replace(usual, augmentation=spec.operations)

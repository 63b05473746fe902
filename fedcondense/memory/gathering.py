"""Images that come a few at a time, without boundaries: held in RAM until there are enough, or it is time."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedcondense.data.augment import OPERATIONS
from fedcondense.data.class_names import class_name
from fedcondense.data.images import Data, Spec
from fedcondense.data.layouts import channels_come_first
from fedcondense.data.vocabulary import spelling, warn_of_alike
from fedcondense.errors import DataError

__all__ = ["KEEPS_LABELS", "Gathered", "Piece", "as_piece", "joined", "measured_spec", "tell_of_odd"]

_LOG = logging.getLogger(__name__)

KEEPS_LABELS = tuple(name for name in OPERATIONS if name != "flip")  # a mirrored digit is none


class Piece(NamedTuple):
    """What one call brought."""

    data: Data  # on the CPU
    is_measured: bool  # whether the mean and std of its spec are still to be measured
    note: Mapping[str, Any] | None = None  # to be kept with the memory


@dataclass(frozen=True)
class Gathered:
    """What came since a memory last condensed, and when it does so again; a value.

    Args:
        samples: How many images are condensed together; None: it is not their number that decides.
        seconds: How long after the first of them came; None: it is not the clock.
        pieces: In the order in which they came.
        since: When the first came, by the monotonic clock.
    """

    samples: int | None = None
    seconds: float | None = None
    pieces: tuple[Piece, ...] = ()
    since: float = 0.0

    @property
    def waits(self) -> bool:
        """Whether anything is held at all."""
        return not (self.samples is None and self.seconds is None)

    @property
    def names(self) -> list[str]:
        """The classes of what is held."""
        return list(dict.fromkeys(name for piece in self.pieces for name in piece.data.spec.classes))

    def take(self, piece: Piece) -> tuple[list[list[Piece]], Gathered]:
        """Return what is to be condensed now that a piece has come, in chunks, and what is held from now on.

        Raises:
            DataError: Its images are of another shape than those that are held.
        """
        held = (*self.pieces, piece)
        shape, first = piece.data.spec.shape, held[0].data.spec.shape
        if shape != first:
            raise DataError(f"images of {shape}; those before were {first}: resize the stream's")
        now = time.monotonic()
        since = self.since if self.pieces else now
        chunks, left = ([], list(held)) if self.samples is None else _split(held, self.samples)
        if left and (not self.waits or (self.seconds is not None and now - since >= self.seconds)):
            chunks, left = [*chunks, left], []
        return chunks, replace(self, pieces=tuple(left), since=now if chunks else since)

    def without(self, name: str) -> Gathered:
        """Return it without a class."""
        kept = []
        for piece in self.pieces:
            classes = piece.data.spec.classes
            number = classes.index(name) if name in classes else -1
            if len(left := piece.data.subset(piece.data.labels != number)):
                kept.append(piece if len(left) == len(piece.data) else piece._replace(data=left))
        return replace(self, pieces=tuple(kept))

    def __len__(self) -> int:
        """Return the number of images that are held."""
        return sum(len(piece.data) for piece in self.pieces)


def as_piece(images: Tensor, labels: Sequence[str | int] | Tensor) -> Piece:
    """Return images of which nothing but their classes is known.

    Args:
        images: (N, C, H, W) uint8, an array or a tensor; C is 1 or 3.
        labels: (N,) the name of each image's class; a whole number is a name, too.

    Raises:
        DataError: They are something else.
    """
    images = torch.as_tensor(images)
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(f"images of {images.dtype} {tuple(images.shape)}; needed: torch.uint8 (N, C, H, W)")
    if turned := channels_come_first(images.shape[1:]):
        raise DataError(f"images of {tuple(images.shape)}; needed: (N, C, H, W), {turned}")
    given = labels.tolist() if isinstance(labels, Tensor) else labels
    names = [class_name(label, place) for place, label in enumerate(given)]
    classes = tuple(dict.fromkeys(names))
    number = {name: c for c, name in enumerate(classes)}
    channels, height, width = images.shape[1:]
    spec = Spec("stream", (channels, height, width), classes, (0.0,) * channels, (1.0,) * channels, KEEPS_LABELS)
    return Piece(Data(images.cpu(), torch.tensor([number[name] for name in names], dtype=torch.int64), spec), True)


def tell_of_odd(names: Sequence[str], known: Collection[str]) -> None:
    """Warn, once, of new classes that are probably old ones: in another spelling, or numbers beside names."""
    if not (new := [name for name in names if name not in known]):
        return
    spelled = set(map(spelling, new))
    warn_of_alike([*(name for name in known if spelling(name) in spelled), *new], "the stream")
    kinds = {name.isdecimal() for name in known}, {name.isdecimal() for name in new}
    if len(kinds[0] | kinds[1]) > 1 and len(kinds[0]) < 2:
        number = next(name for name in [*new, *known] if name.isdecimal())
        _LOG.warning("the stream: label %s is a class of its own beside those that have names; give all names", number)


def measured_spec(images: Tensor, operations: tuple[str, ...]) -> Spec:
    """Return what images (N, C, H, W) uint8 are, of which nothing is known: their own mean and std, and no classes."""
    pixels = images.float().div(255).transpose(0, 1).flatten(1)
    mean, std = pixels.mean(1), pixels.std(1).nan_to_num().clamp_min(1e-3)
    channels, height, width = images.shape[1:]
    return Spec("stream", (channels, height, width), (), tuple(mean.tolist()), tuple(std.tolist()), operations)


def _split(pieces: Sequence[Piece], samples: int) -> tuple[list[list[Piece]], list[Piece]]:
    """Divide pieces into chunks of exactly so many images, in order; return these, and the pieces that are left over.

    Chunks do not depend on how many images came at a time.
    """
    chunks: list[list[Piece]] = []
    held, count = list[Piece](), 0
    for piece in pieces:
        begin, end = 0, len(piece.data)
        while count + end - begin >= samples:
            chunks.append([*held, _rows(piece, begin, begin + samples - count)])
            begin += samples - count
            held, count = [], 0
        if begin < end:
            held.append(_rows(piece, begin, end))
            count += end - begin
    return chunks, held


def _rows(piece: Piece, begin: int, end: int) -> Piece:
    if (begin, end) == (0, len(piece.data)):
        return piece
    return piece._replace(data=piece.data.subset(torch.arange(begin, end)))


def joined(pieces: Sequence[Piece], spec: Spec | None) -> Data:
    """Return pieces as one, its classes in the order in which their first images came.

    Args:
        pieces: One or more.
        spec: What the images are, if that is known; its classes do not count.
    """
    names = [piece.data.spec.classes[label] for piece in pieces for label in piece.data.labels.tolist()]
    number = {name: c for c, name in enumerate(dict.fromkeys(names))}
    images, first = torch.cat([piece.data.images for piece in pieces]), pieces[0]
    if spec is None:
        spec = measured_spec(images, first.data.spec.operations) if first.is_measured else first.data.spec
    labels = torch.tensor([number[name] for name in names], dtype=torch.int64)
    return Data(images, labels, replace(spec, classes=tuple(number)))

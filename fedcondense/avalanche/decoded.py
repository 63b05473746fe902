"""What a buffer replays, as tensors: decoded once per experience, in a bounded number of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedcondense.avalanche.naming import label_and_task
from fedcondense.avalanche.stream import Range
from fedcondense.contract import Batch
from fedcondense.errors import SettingError
from fedcondense.memory import Memory
from fedcondense.sets.parts import Part

__all__ = ["Decoded", "Working", "decode"]

_AT_ONCE = 1 << 24  # bytes of float32 images that are decoded at a time


class Decoded(NamedTuple):
    """The images that a buffer replays, as tensors."""

    images: Tensor  # (N, C, H, W), float32, in the stream's values
    targets: Tensor  # (N, K) probabilities over `labels`
    labels: Tensor  # (K,) int64, the stream's label of each column
    tasks: Tensor  # (K,) int64
    mean: Tensor  # (C,) of the stream: what the augmentation takes for grey
    std: Tensor  # (C,)


@dataclass(frozen=True)
class Working:
    """The working copy: as `Decoded`, but the images may be held in 8 bits."""

    images: Tensor  # (N, C, H, W), float32 in the stream's values, or uint8 for [0, 1]
    targets: Tensor
    labels: Tensor
    tasks: Tensor
    mean: Tensor
    std: Tensor
    span: Range

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def take(self, index: Tensor | slice) -> Tensor:
        """Return images as float32 in the stream's values, a copy where `index` is a tensor."""
        images = self.images[index]
        return self.span.to_stream(images.float() / 255) if images.dtype == torch.uint8 else images

    def image(self, rows: Tensor, place: int) -> Tensor:
        """Return a copy of the image (C, H, W) at a place of `rows`, float32 in the stream's values."""
        return self.take(rows[place : place + 1])[0]

    def to(self, device: torch.device | str) -> Working:
        """Return the copy on a device; itself if it is there."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if name != "span"}
        return replace(self, **tensors)

    @property
    def decoded(self) -> Decoded:
        """A copy as floats."""
        rest = (self.targets, self.labels, self.tasks, self.mean, self.std)
        return Decoded(self.take(slice(None)).clone(), *(value.clone() for value in rest))


def decode(memory: Memory, span: Range | None, most: int, classes: Sequence[str] = ()) -> Working | None:
    """Return all that a memory replays, or None if that is nothing.

    The images are float32 where these take at most `most` bytes, and 8 bits otherwise, rounded by up to 1/510 of the
    range if they are enlarged ones. Beside them, the stored codes and 16 MB are in use for a moment.

    Args:
        memory: Its groups are named by `group_name`.
        span: What its bytes stand for in the stream; None: there was no stream yet.
        most: Bytes that the images may take.
        classes: What labels are called, if that is known.

    Raises:
        SettingError: They would take more in 8 bits, too.
    """
    synthetic, spec = memory.synthetic, memory.spec
    if synthetic is None or spec is None or span is None:
        return None
    shape = (len(synthetic), *spec.shape)
    values = torch.Size(shape).numel()
    if values > most:
        raise SettingError(
            f"{shape[0]} decoded images of {spec.shape} take {values} bytes in 8 bits, working_bytes is {most}; "
            "allow more, or give the buffer a smaller budget"
        )
    images = torch.empty(shape, dtype=torch.float32 if 4 * values <= most else torch.uint8)
    targets = torch.zeros(len(synthetic), len(synthetic.classes))
    place, begin = {name: k for k, name in enumerate(synthetic.classes)}, 0
    for part in synthetic.parts:
        columns = torch.tensor([place[name] for name in part.record.classes])
        for batch in _pieces(part):
            here = slice(begin, begin + len(batch.images))
            is_float = images.dtype == torch.float32
            images[here] = span.to_stream(batch.images) if is_float else batch.images.mul(255).round()
            targets[here, columns] = batch.targets
            begin += len(batch.images)
    pairs = torch.tensor([label_and_task(name, classes) for name in synthetic.classes])
    column = torch.tensor(spec.mean).view(1, -1, 1, 1), torch.tensor(spec.std).view(1, -1, 1, 1)
    mean = span.to_stream(column[0]).flatten()
    std = (span.to_stream(column[0] + column[1]).flatten() - mean).abs()
    return Working(images, targets, pairs[:, 0], pairs[:, 1], mean, std, span)


def _pieces(part: Part) -> Iterator[Batch]:
    """Decode a part, a few images at a time where each has its own codes."""
    if not part.is_separable:
        yield part.decode()
        return
    codes = dict(part.codes)
    each = 4 * torch.Size(part.record.shape).numel() * part.parametrization.start_count(1)
    size = max(1, _AT_ONCE // each)
    for begin in range(0, part.stored, size):
        rows = slice(begin, begin + size)
        few = {name: code[rows] for name, code in codes.items()}
        yield replace(part, codes=few, targets=part.targets[rows]).decode()

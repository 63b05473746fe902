"""What a codec is: a way to pack stored images of 8 bits a value into fewer bytes."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Chunk", "Codec", "Inexact"]


class Chunk(NamedTuple):
    """Some images of one tensor, packed together; the chunks of several tensors make one when they are put together.

    Args:
        size: How many images.
        data: What `Codec.encode` made of them.
    """

    size: int
    data: bytes


@runtime_checkable
class Codec(Protocol):
    """Packs images; a frozen dataclass whose fields are whole numbers and words, and are its name in this order.

    What it packs are the codes of a parametrization, one tensor at a time, and so it knows neither. An entry of
    `CODECS` is its class, by the first word of its names: ``Bits(2, "patch")`` is named ``"bits-2-patch"``. One that
    can say so has ``bound(shape)``, the most bytes that images of (N, C, H, W) take whatever they show.
    """

    exact: ClassVar[bool]
    """Whether it decodes to the same bytes with any version of the libraries that it uses; if not, it is `Inexact`."""

    by_class: ClassVar[bool]
    """Whether each class is a chunk of its own, since images cannot be left out of a chunk: `select` refuses."""

    def most(self, shape: tuple[int, int, int]) -> int:
        """Return how many images of (C, H, W) one chunk may hold.

        Raises:
            SettingError: It cannot pack images of this shape.
        """

    def encode(self, images: Tensor, labels: Tensor) -> bytes:
        """Pack a chunk of (N, C, H, W) uint8 images, N >= 1, whose classes are (N,) int64."""

    def decode(self, data: bytes, shape: tuple[int, int, int, int]) -> Tensor:
        """Return (N, C, H, W) uint8, or refuse data of unknown origin.

        No more memory is taken than a small multiple of what `data` and the result take.

        Raises:
            ValueError: The data are not those of so many images, or anything else is wrong with them.
        """

    def select(self, data: bytes, shape: tuple[int, int, int, int], rows: Tensor) -> bytes:
        """Return a chunk of some images, (M,) int64 ascending, which decode as they did.

        Raises:
            SettingError: It cannot, without decoding and encoding once more.
        """


@runtime_checkable
class Inexact(Codec, Protocol):
    """A codec that other versions of its libraries may decode to values a few grey levels off."""

    def decoder(self) -> str:
        """Return what decodes here, with versions, in a few words; it is recorded beside an accuracy."""

"""A replay buffer of real images that are coded: more of them in the same bytes than any buffer of plain ones holds."""

from __future__ import annotations

from typing import Any

from fedcondense.avalanche.buffer import CondensedBuffer
from fedcondense.errors import SettingError
from fedcondense.memory import Selector
from fedcondense.sets.codecs import RAW

__all__ = ["CodedBuffer"]


class CodedBuffer(CondensedBuffer):
    """Holds real images as JPEG or in another codec, in the place of Avalanche's class-balanced or reservoir buffer.

    Nothing is condensed, so an update takes no longer than drawing and encoding do. An image is encoded when it enters;
    those that leave are cut out, so that the others decode as they did. Each update that leaves images keeps tables of
    its own, 0.3 kB in grey and 0.6 kB in colour for JPEG: choose ``"bits-2"`` or ``"dct-65"`` where few images come at
    a time (measured in `experiments/memories.md`).

    >>> from fedcondense.avalanche import CodedBuffer  # doctest: +SKIP
    >>> buffer = CodedBuffer(max_bytes=307_200)  # doctest: +SKIP
    >>> plugin = ReplayPlugin(mem_size=buffer.max_size, storage_policy=buffer)  # doctest: +SKIP

    Args:
        max_size: Images, if their number is what is bounded.
        max_bytes: What `nbytes` may be instead, as in `CondensedBuffer`.
        codec: ``"jpeg-15"``, ``"dct-65"``, ``"bits-3"``, ...: a name as `fedcondense.sets.codecs` has them. WebP leaves
            out whole classes alone, so it needs `total_num_groups`, with `adaptive_size=False`, and each class at once.
        balance: ``"class"``: as many of each class; ``"reservoir"``: each image of the stream as likely as another.
        kwargs: As for `CondensedBuffer`, but for what condenses.

    Raises:
        SettingError: An argument is about condensing, or cannot work.
    """

    def __init__(
        self,
        max_size: int | None = None,
        *,
        max_bytes: int | str | None = None,
        codec: str = "jpeg-15",
        balance: str = "class",
        **kwargs: Any,
    ) -> None:
        for name in ("condenser", "real_fraction", "real_codec", "update"):
            if name in kwargs:
                raise SettingError(f"{name} of a CodedBuffer, which holds real images alone; give a CondensedBuffer it")
        super().__init__(
            max_size,
            max_bytes=max_bytes,
            condenser=Selector("random"),
            real_fraction=1.0,
            codec=RAW,
            real_codec=codec,
            balance=balance,
            **kwargs,
        )

"""A buffer's file read back: a memory, and the form of the stream that it belongs to."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence

from fedcondense.avalanche.naming import label_and_task
from fedcondense.avalanche.stream import Layout, Range, read_note
from fedcondense.errors import ResumeError, UntrustedSetError
from fedcondense.memory import Memory

__all__ = ["read_saved"]


def read_saved(
    memory: Memory, path: str | os.PathLike[str], shape: tuple[int, int, int] | None, classes: Sequence[str] = ()
) -> tuple[Memory, Range, Layout]:
    """Read a buffer's file.

    Args:
        memory: The buffer's, whose settings the file must have; it stays as it is.
        path: The file.
        shape: (C, H, W) of the buffer's stream; None: it had none yet.
        classes: What the buffer's labels are called; none: they are numbers.

    Raises:
        UntrustedSetError: The file is damaged, or no memory of a buffer.
        ResumeError: It was saved with other settings, or for a stream of other images.
    """
    fresh = copy.copy(memory)
    fresh.load(path)
    try:
        span, layout = read_note(fresh.note)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UntrustedSetError(f"{path}: a memory, but not of a buffer; give what a buffer's `save` wrote") from None
    try:
        for name in fresh.names:
            label_and_task(name, classes)
    except (ValueError, OverflowError):
        mine = ", ".join(classes) or "numbers"
        raise ResumeError(
            f"{path}: it has a class {name!r:.60}, the classes of this buffer are {mine:.200}; give it those that the "
            "file was saved with as classes="
        ) from None
    assert fresh.spec is not None
    if shape not in (None, fresh.spec.shape):
        raise ResumeError(f"{path}: images of {fresh.spec.shape}; this buffer's stream has {shape}: give its own file")
    if len(span.low) != fresh.spec.shape[0]:
        raise UntrustedSetError(f"{path}: a range of {len(span.low)} channels for images of {fresh.spec.shape}")
    return fresh, span, layout

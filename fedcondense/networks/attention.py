"""Attention that can be differentiated twice: the fused kernels cannot."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["plain_attention"]

_LOCK = threading.Lock()
_INSIDE = 0
_SWITCH: AbstractContextManager[None] | None = None


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention as it is written, matrix product by matrix product.

    Torch's switch is one of the whole process. It is thrown by the first thread that comes and put back by the last
    that goes, so that no thread takes it from another.
    """
    global _INSIDE, _SWITCH
    with _LOCK:
        if not _INSIDE:
            _SWITCH = sdpa_kernel(SDPBackend.MATH)
            _SWITCH.__enter__()
        _INSIDE += 1
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE -= 1
            if not _INSIDE and _SWITCH is not None:
                _SWITCH.__exit__(None, None, None)
                _SWITCH = None

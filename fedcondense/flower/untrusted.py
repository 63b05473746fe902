"""Arrays, numbers and texts of unknown origin: one parser of npy headers, and what makes a text safe to show."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.lib import format as npy

from fedcondense.errors import UntrustedSetError

__all__ = ["count_of", "for_images", "safe_text", "seconds_of", "some_names", "untrusted_array"]

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_HTML = str.maketrans({"<": "(", ">": ")", "&": "+"})
_NPY_OVERHEAD = 256  # the npy header of one uint8 vector takes 128 bytes


def untrusted_array(array: Array, dtypes: Iterable[str], max_bytes: int) -> np.ndarray:
    """Read an Array whose sender may lie: its npy header is checked before anything of its size is allocated.

    `Array.numpy()` allocates what the header says, whatever follows it; `Array.shape` and `.dtype` are claims that
    nobody compares with the data.

    Args:
        array: As it arrived.
        dtypes: Names of the dtypes that are allowed.
        max_bytes: How large the data may be.

    Returns:
        A read-only view of the message's own bytes.

    Raises:
        UntrustedSetError: The header is of another kind, dtype or size than allowed, or not that of the data.
    """
    if array.stype != "numpy.ndarray":
        raise UntrustedSetError(f"an Array serialised as {array.stype[:40]!r}; needed: numpy.ndarray")
    if len(array.data) > max_bytes + _NPY_OVERHEAD:
        raise UntrustedSetError(f"an Array of {len(array.data)} bytes; allowed: {max_bytes}")
    file = io.BytesIO(array.data)
    try:
        if npy.read_magic(file) != (1, 0):
            raise UntrustedSetError("an npy header that is not version 1.0")
        shape, fortran, dtype = npy.read_array_header_1_0(file)
    except UntrustedSetError:
        raise
    except Exception as damaged:  # numpy raises ValueError, TypeError, SyntaxError and more on hostile headers
        raise UntrustedSetError(f"a damaged npy header ({type(damaged).__name__})") from None
    if fortran or dtype.hasobject or dtype.name not in tuple(dtypes):
        raise UntrustedSetError(f"an Array of dtype {dtype.name}; allowed: {', '.join(dtypes)}, C order")
    size = math.prod(shape) * dtype.itemsize  # Python's integers do not overflow
    if min(shape, default=0) < 0 or size != len(array.data) - file.tell():
        raise UntrustedSetError(f"an Array whose header says {size} bytes; {len(array.data) - file.tell()} follow")
    if size > max_bytes:
        raise UntrustedSetError(f"an Array of {size} bytes; allowed: {max_bytes}")
    return np.frombuffer(array.data, dtype, offset=file.tell()).reshape(shape)


def seconds_of(said: Mapping[str, Any]) -> float:
    """Return the ``seconds`` that somebody claims, 0 where nobody does.

    Raises:
        UntrustedSetError: They are no number from 0, below 1e12.
    """
    seconds = said.get("seconds", 0.0)
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e12:
        raise UntrustedSetError("'seconds' is no number from 0, below 1e12")
    return float(seconds)


def count_of(said: Mapping[str, Any], key: str) -> int:
    """Return a count that somebody claims.

    Raises:
        UntrustedSetError: It is no whole number from 0, below 2**62.
    """
    value = said.get(key)
    if not isinstance(value, int) or not 0 <= value < 2**62:
        raise UntrustedSetError(f"{key!r} is no whole number from 0")
    return value


def safe_text(text: str, length: int = 300) -> str:
    r"""Return the last line of a text from elsewhere without control characters, colour codes or HTML, shortened.

    >>> safe_text("Traceback ...\n\x1b[36mValueError: <b>bad</b>\x1b[0m\n")
    'ValueError: (b)bad(/b)'
    """
    lines = [line.strip() for line in _ANSI.sub("", text[-100_000:]).splitlines() if line.strip()]
    line = "".join(c if c.isprintable() else "?" for c in (lines[-1] if lines else "no reason given"))
    return (line if len(line) <= length else line[: length - 3] + "...").translate(_HTML)


def some_names(names: Iterable[str] | Mapping[str, object]) -> str:
    """Return the first five names, quoted and shortened, and how many more there are."""
    some = sorted(str(name)[:40] for name in names)
    return ", ".join(map(repr, some[:5])) + (f" and {len(some) - 5} more" if len(some) > 5 else "")


@contextmanager
def for_images(shape: tuple[int, int, int]) -> Iterator[None]:
    """Say of weights that do not fit which images the network here is for: another size makes another network."""
    try:
        yield
    except UntrustedSetError as error:
        here = (
            f"images here are {shape[1]}x{shape[2]}; if the server's are others, let the node's config say their size"
        )
        raise UntrustedSetError(f"{error}; {here}") from None

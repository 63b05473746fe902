from __future__ import annotations

import io
import resource
import struct

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st

from fedcondense.errors import UntrustedSetError
from fedcondense.flower.untrusted import safe_text, some_names, untrusted_array


def test_names_are_quoted_shortened_and_counted() -> None:
    assert some_names(["b", "a"]) == "'a', 'b'"
    assert some_names([str(k) * 50 for k in range(7)]).endswith("'4444444444444444444444444444444444444444' and 2 more")


def npy(shape: tuple[int, ...], dtype: str = "|u1", data: bytes = b"") -> bytes:
    """Return an npy file that says what it likes about the data behind it."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def raw(data: bytes) -> Array:
    return Array(dtype="uint8", shape=(10,), stype="numpy.ndarray", data=data)


def peak_bytes() -> int:
    """The most memory this process ever held; Linux counts in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class TestUntrustedArray:
    @given(st.integers(0, 300))
    def test_what_numpy_wrote_is_read_without_a_copy(self, size: int) -> None:
        values = np.arange(size, dtype=np.uint8)
        read = untrusted_array(Array(values), ("uint8",), 300)
        np.testing.assert_array_equal(read, values)
        assert not read.flags.writeable

    def test_a_header_that_lies_allocates_nothing(self) -> None:
        before = peak_bytes()
        with pytest.raises(UntrustedSetError, match="header says"):
            untrusted_array(raw(npy((3 << 30,))), ("uint8",), 1 << 20)
        assert peak_bytes() - before < 16 << 20

    @given(st.binary(max_size=200))
    def test_any_bytes_are_refused_or_read(self, data: bytes) -> None:
        for blob in (data, b"\x93NUMPY\x01\x00" + data):
            try:
                untrusted_array(raw(blob), ("uint8",), 1 << 20)
            except UntrustedSetError:
                continue
            assert np.load(io.BytesIO(blob), allow_pickle=False) is not None


class TestSafeText:
    @given(st.text())
    def test_it_is_printable_short_and_holds_no_markup(self, text: str) -> None:
        shown = safe_text(text)
        assert shown.isprintable()
        assert 0 < len(shown) <= 300
        assert not set(shown) & set("<>&")

    def test_the_last_line_of_a_traceback_is_what_counts(self) -> None:
        assert safe_text("Traceback\n  File x\nValueError: no \x1b[31mred\x1b[0m\n\n") == "ValueError: no red"

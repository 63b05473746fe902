from __future__ import annotations

import contextlib
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcondense.data.images import Data, Spec
from fedcondense.errors import UntrustedSetError
from fedcondense.flower.payloads import Metrics
from fedcondense.flower.short_files import digest_of, pack_file, unpack_file
from fedcondense.randomness import stream
from fedcondense.sets.selection import select

MOST = 1 << 20


@pytest.fixture(scope="module")
def file(train: Data) -> bytes:
    return select(train, 1, "random", seed=0).recode("bits-2").to_bytes()


def header_bytes(blob: bytes) -> int:
    return 8 + int.from_bytes(blob[:8], "little")


class TestRoundTrip:
    def test_a_set_comes_back_and_its_header_takes_a_fifth(self, file: bytes, train: Data) -> None:
        header, rest = header_bytes(file), len(file) - header_bytes(file)
        for classes in ((), train.spec.classes):
            packed = pack_file(file, classes)
            assert unpack_file(packed, classes, MOST) == file
            assert len(packed) - rest < header / 5

    def test_names_that_both_have_are_not_sent(self) -> None:
        words = stream(0)
        names = tuple("".join(chr(97 + k) for k in torch.randint(26, (12,), generator=words)) for _ in range(30))
        spec = Spec("toys", (1, 4, 4), names, (0.5,), (0.5,))
        data = Data(torch.zeros(60, 1, 4, 4, dtype=torch.uint8), torch.arange(60) % 30, spec)
        blob = select(data, 1, "random", seed=0).to_bytes()
        assert len(pack_file(blob, names)) < len(pack_file(blob)) - 30 * 8

    @given(st.binary(max_size=300), st.lists(st.text(min_size=1), max_size=3))
    def test_any_bytes_come_back(self, blob: bytes, classes: list[str]) -> None:
        assert unpack_file(pack_file(blob, classes), classes, MOST) == blob
        assert len(pack_file(blob, classes)) <= len(blob) + 1

    def test_what_is_no_such_file_travels_as_it_is(self) -> None:
        numbers = Metrics({"a": 1.0}).to_bytes()
        assert pack_file(numbers) == b"\0" + numbers


class TestHostile:
    def test_inflation_stops_at_the_most_that_a_header_may_take(self) -> None:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = b"\x01" + packer.compress(bytes(1 << 24)) + packer.flush()
        assert len(bomb) < 1 << 15
        with pytest.raises(UntrustedSetError, match="cut off, or of more than 5000 bytes"):
            unpack_file(bomb, (), 5000)

    def test_a_stream_that_is_cut_or_damaged_is_refused(self, file: bytes) -> None:
        packed = pack_file(file)
        with pytest.raises(UntrustedSetError, match="cut off"):
            unpack_file(packed[:40], (), MOST)
        with pytest.raises(UntrustedSetError, match="damaged"):
            unpack_file(b"\x01\xff" + packed[2:], (), MOST)

    def test_a_dictionary_that_the_question_did_not_name_is_refused(self, file: bytes) -> None:
        for data in (pack_file(file, ("a", "b")), b"\x03" + file, b""):
            with pytest.raises(UntrustedSetError, match="packed in a way that the question did not name"):
                unpack_file(data, (), MOST)

    @given(st.binary(max_size=200))
    def test_any_bytes_are_refused_or_read(self, data: bytes) -> None:
        with contextlib.suppress(UntrustedSetError):
            assert isinstance(unpack_file(data, ("a",), 1000), bytes)


def test_the_text_that_both_ends_have_never_changes() -> None:
    """Another text is another wire: what older nodes pack could not be read."""
    from fedcondense.flower import short_files

    assert zlib.crc32(short_files._TEXT) == 0x86389994


def test_a_digest_tells_order_and_bounds_of_names() -> None:
    digests = {digest_of(names) for names in (("a", "b"), ("b", "a"), ("a,b",), ("ab",), ("a",))}
    assert len(digests) == 5
    assert all(len(digest) == 8 for digest in digests)

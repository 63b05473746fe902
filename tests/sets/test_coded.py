"""Codes that keep their bytes: as a mapping, in chunks, put together and cut, copied and pickled."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcondense.errors import SettingError
from fedcondense.parametrizations import Pixels
from fedcondense.sets.codecs import Bits, Chunk, Jpeg, WebP, codec_named
from fedcondense.sets.coded import Coded, Stored, encode, put_together, read_stored
from fedcondense.sets.parts import Part, Record

RECORD = Record("toy", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,))
LABELS = torch.tensor([0, 0, 0, 1, 1, 2], dtype=torch.uint8)
IMAGES = torch.arange(6 * 64).mul(41).remainder(251).to(torch.uint8).reshape(6, 1, 8, 8)


def coded(name: str) -> Coded:
    codec = codec_named(name)
    assert codec is not None
    return encode({"images": IMAGES}, LABELS.long(), codec)


def test_codes_are_a_mapping_that_decodes_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, calls = coded("bits-2"), 0

    def counted(
        self: Bits, data: bytes, shape: tuple[int, int, int, int], decode: object = Bits.decode
    ) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return decode(self, data, shape)  # type: ignore[operator, no-any-return]

    monkeypatch.setattr(Bits, "decode", counted)
    assert list(codes) == ["images"]
    assert len(codes) == 1
    assert codes.shapes == {"images": (6, 1, 8, 8)}
    assert calls == 0
    assert codes["images"] is codes["images"]
    assert calls == 1
    with pytest.raises(KeyError):
        codes["bases"]


def test_one_chunk_for_all_images_and_one_a_class_where_images_cannot_be_left_out() -> None:
    assert [chunk.size for chunk in coded("bits-2").stored["images"].chunks] == [6]
    assert [chunk.size for chunk in coded("jpeg-50").stored["images"].chunks] == [6]
    assert [chunk.size for chunk in coded("webp-50").stored["images"].chunks] == [3, 2, 1]


@pytest.mark.parametrize("name", ["bits-2", "bits-2-patch", "jpeg-50", "webp-50"])
def test_what_is_cut_and_put_together_decodes_as_it_did(name: str) -> None:
    whole = coded(name)
    first, rest = whole.rows(torch.arange(3)), whole.rows(torch.arange(3, 6))
    again = put_together([first, rest])
    assert isinstance(again, Coded)
    assert torch.equal(again["images"], whole["images"])
    assert torch.equal(put_together([rest, first])["images"], whole["images"].roll(3, 0))
    assert whole.rows(torch.arange(6)).stored == whole.stored  # the same bytes
    assert whole.rows(torch.arange(0))["images"].shape == (0, 1, 8, 8)


def test_codes_of_several_codecs_are_not_put_together() -> None:
    with pytest.raises(SettingError, match="parts by bits-2 and raw cannot be one without another loss; recode"):
        put_together([coded("bits-2"), {"images": IMAGES}])
    with pytest.raises(SettingError, match="parts by bits-2 and jpeg-50"):
        put_together([coded("jpeg-50"), coded("bits-2")])
    assert torch.equal(put_together([{"images": IMAGES}] * 2)["images"], IMAGES.repeat(2, 1, 1, 1))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 300), st.binary(max_size=300)), max_size=5))
def test_tables_of_chunks_come_back(chunks: list[tuple[int, bytes]]) -> None:
    stored = Stored((sum(size for size, _ in chunks), 1, 2, 2), tuple(Chunk(*chunk) for chunk in chunks))
    assert read_stored(stored.to_bytes(), stored.shape) == stored


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=12), st.integers(0, 5))
def test_any_bytes_are_chunks_that_are_written_so_or_are_refused(data: bytes, count: int) -> None:
    try:
        found = read_stored(data, (count, 1, 2, 2))
    except ValueError:
        return
    assert found.to_bytes() == data
    assert sum(chunk.size for chunk in found.chunks) == count


@pytest.mark.parametrize("name", ["bits-2-class", "jpeg-50", "webp-50"])
def test_codes_are_copied_and_pickled_by_their_bytes(name: str) -> None:
    part = Part(coded(name), LABELS, Pixels(), RECORD)
    decoded = part.codes["images"]
    for again in (copy.deepcopy(part), copy.copy(part), pickle.loads(pickle.dumps(part)), replace(part)):
        assert isinstance(again.codes, Coded)
        assert isinstance(part.codes, Coded)
        assert again.codes.stored == part.codes.stored
        assert again.codec == part.codec
        assert torch.equal(again.codes["images"], decoded)
        assert (again.record, again.parametrization) == (part.record, part.parametrization)
    assert len(pickle.dumps(part.codes)) < len(pickle.dumps(coded(name))) + 64  # what was decoded does not travel


def test_parts_are_equal_as_they_were() -> None:
    for codes in (coded("bits-2"), {"images": IMAGES}):
        part = Part(codes, LABELS, Pixels(), RECORD)
        assert part == replace(part)
        assert part != replace(part, record=replace(RECORD, seed=1))
        assert part == copy.deepcopy(part)
        assert part != replace(part, targets=part.targets.flip(0))


def test_codecs_are_values() -> None:
    assert Jpeg(10) == Jpeg(10) != Jpeg(11)
    assert len({WebP(10), WebP(10), WebP(20)}) == 2
    assert repr(Bits(2, "patch")) == "Bits(bits=2, scale='patch')"

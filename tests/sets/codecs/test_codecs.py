"""What every codec has to do; a new entry of `CODECS` adds its names here."""

from __future__ import annotations

import tracemalloc
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcondense.errors import FedcondenseError, SettingError
from fedcondense.sets.codecs import CODECS, Codec, codec_named, name_of

NAMES = {
    "bits": ("bits-1", "bits-2", "bits-3", "bits-6", "bits-2-class", "bits-2-patch"),
    "jpeg": ("jpeg-10", "jpeg-90"),
    "webp": ("webp-10", "webp-90"),
    "palette": ("palette-2", "palette-16", "palette-64"),
}
SHAPES = [(1, 28, 28), (3, 32, 32), (1, 7, 5), (3, 13, 16), (2, 8, 8), (4, 5, 6)]
CASES = [(name, shape) for names in NAMES.values() for name in names for shape in SHAPES]


def test_every_codec_is_here() -> None:
    assert set(NAMES) == set(CODECS)


def images(count: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Return smooth pictures, as codecs expect them."""
    noise = torch.rand(count, shape[0], 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, size=shape[1:], mode="bilinear", align_corners=False)
    return smooth.mul(255).round().to(torch.uint8)


@cache
def packed(name: str, shape: tuple[int, int, int], count: int = 6) -> tuple[Codec, torch.Tensor, bytes]:
    codec = codec_named(name)
    assert codec is not None
    try:
        assert codec.most(shape) >= 1
    except SettingError as error:
        if shape[0] in (1, 3) and not name.startswith("palette"):
            raise
        pytest.skip(str(error))
    values = images(count, shape)
    return codec, values, codec.encode(values, torch.arange(count) // 2)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_what_is_packed_comes_back_near_itself(name: str, shape: tuple[int, int, int]) -> None:
    codec, values, data = packed(name, shape)
    found = codec.decode(data, (6, *shape))
    assert found.dtype == torch.uint8
    assert found.shape == values.shape
    error = (found.float() - values.float()).square().mean().sqrt()
    assert error < 0.9 * values.float().std()  # nearer than their mean is
    assert torch.equal(found, codec.decode(data, (6, *shape)))


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_some_images_decode_as_they_did_among_all(name: str, shape: tuple[int, int, int]) -> None:
    codec, _, data = packed(name, shape)
    rows = torch.tensor([0, 2, 5])
    if codec.by_class:
        with pytest.raises(SettingError, match="3 of 6 images of a class"):
            codec.select(data, (6, *shape), rows)
        return
    some = codec.select(data, (6, *shape), rows)
    assert torch.equal(codec.decode(some, (3, *shape)), codec.decode(data, (6, *shape))[rows])
    again = codec.select(some, (3, *shape), torch.tensor([1]))
    assert torch.equal(codec.decode(again, (1, *shape)), codec.decode(data, (6, *shape))[2:3])
    assert len(again) < len(data)


@pytest.mark.parametrize("name", [name for name in sum(NAMES.values(), ()) if name[:4] in ("bits", "pale")])
def test_exact_codecs_keep_what_they_decoded_to(name: str) -> None:
    codec, _, data = packed(name, (3, 8, 8))
    assert codec.exact
    found = codec.decode(data, (6, 3, 8, 8))
    if "patch" in name:  # groups are chosen anew, and share levels otherwise
        return
    again = codec.decode(codec.encode(found, torch.arange(6) // 2), (6, 3, 8, 8))
    assert (again != found).float().mean() < (0.05 if name.startswith("palette") else 1e-9)


@pytest.mark.parametrize(("name", "shape"), [case for case in CASES if case[1] in ((1, 28, 28), (3, 32, 32))])
@pytest.mark.parametrize("count", [1, 5, 7, 600])
def test_other_numbers_of_images_than_there_are_are_refused(name: str, shape: tuple[int, int, int], count: int) -> None:
    codec, _, data = packed(name, shape)
    if codec.by_class and count == 5:
        pytest.skip("a sheet of five is as large as one of six")
    with pytest.raises((ValueError, FedcondenseError)):
        codec.decode(data, (count, *shape))


@pytest.mark.parametrize("name", sum(NAMES.values(), ()))
def test_cut_off_data_are_refused(name: str) -> None:
    codec, values, data = packed(name, (3, 16, 16))
    for size in (0, 1, 5, len(data) // 3, len(data) - 1):
        with pytest.raises((ValueError, FedcondenseError)):
            codec.decode(data[:size], tuple(values.shape))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sum(NAMES.values(), ()))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_spoiled_data_decode_to_images_or_are_refused(name: str, places: list[tuple[int, int]]) -> None:
    codec, values, data = packed(name, (3, 8, 8))
    spoiled = bytearray(data)
    for place, value in places:
        spoiled[place % len(data)] = value
    try:
        found = codec.decode(bytes(spoiled), tuple(values.shape))  # type: ignore[arg-type]
    except ValueError:
        return
    assert found.shape == values.shape
    assert found.dtype == torch.uint8


@pytest.mark.parametrize("name", sum(NAMES.values(), ()))
def test_decoding_takes_little_more_than_the_images(name: str) -> None:
    codec = codec_named(name)
    assert codec is not None
    values = torch.zeros(60, 3, 32, 32, dtype=torch.uint8)  # the smallest data for so many
    data = codec.encode(values, torch.zeros(60, dtype=torch.int64))
    tracemalloc.start()
    codec.decode(data, (60, 3, 32, 32))
    peak = tracemalloc.get_traced_memory()[1]
    with pytest.raises(ValueError, match=r"needed|no picture"):
        codec.decode(data, (2, 3, 32, 32))
    tracemalloc.stop()
    assert peak < 12 * values.numel() + 2**21


@pytest.mark.parametrize("name", sum(NAMES.values(), ()))
def test_names_come_back(name: str) -> None:
    assert name_of(codec_named(name)) == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("zip-3", "no codec is called 'zip-3'"),
        ("bits", "needed: a name such as raw, bits-2"),
        ("bits-0", "0 bits a value; needed: from 1 to 6"),
        ("bits-9", "9 bits a value"),
        ("bits-2-tile", "bits by 'tile'; needed: one of tensor, class, patch"),
        ("bits-2-tensor", "needed: 'bits-2'"),
        ("bits-02", "needed: 'bits-2'"),
        ("bits-2-patch-3", "needed: a name such as"),
        ("jpeg-0", "jpeg of quality 0; needed: a whole number from 1 to 100"),
        ("jpeg-high", "jpeg of quality 'high'"),
        ("webp-101", "webp of quality 101"),
        ("palette-1", "a palette of 1 colours; needed: from 2 to 64"),
        ("palette-65", "a palette of 65 colours"),
        ("", "no codec is called ''"),
        ("bits-" + "9" * 100, "no codec is called"),
    ],
)
def test_unknown_names_are_refused_in_one_line(name: str, says: str) -> None:
    with pytest.raises(SettingError) as refused:
        codec_named(name)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_raw_is_none() -> None:
    assert codec_named("raw") is None
    assert name_of(None) == "raw"

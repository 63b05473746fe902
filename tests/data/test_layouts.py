from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcondense.data.layouts import (
    Numbers,
    batch_channels_last,
    channels_come_first,
    check_sizes,
    first,
    stack,
    to_bytes,
    to_numbers,
)
from fedcondense.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), dtype=np.uint8)


def test_every_layout_of_coloured_and_grey_images_becomes_channels_last() -> None:
    assert np.array_equal(batch_channels_last(PIXELS, "toy"), PIXELS)
    assert np.array_equal(batch_channels_last(PIXELS.transpose(0, 3, 1, 2), "toy"), PIXELS)
    assert np.array_equal(batch_channels_last(PIXELS[..., 0], "toy"), PIXELS[..., :1])


@pytest.mark.parametrize("shape", [(8, 9), (5, 8, 9, 2), (0, 8, 9, 3), (5, 7, 9, 3), (5, 8, 129, 3)])
def test_other_shapes_no_images_and_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"toy: .*needed: "):
        batch_channels_last(np.zeros(shape, dtype=np.uint8), "toy")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_byte_survives_floating_point(dtype: npt.DTypeLike) -> None:
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(to_numbers((every / 255).astype(dtype), "toy"), every)
    assert np.array_equal(to_bytes([to_numbers(every.astype(np.int32), "toy")], "toy")[0], every)
    assert to_bytes([to_numbers(every, "toy")], "toy")[0] is every


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.array([1.5]), r"pixels are float64, 1.5 to 1.5"),
        (np.array([-1]), r"pixels are int64, -1 to -1"),
        (np.array([256]), r"pixels are whole numbers, 256 to 256"),
        (np.array(["a"]), "no numbers"),
        (np.array([[0.5], [np.nan], [np.inf]]), r"2 of 3 images hold NaN or infinity \(image 1, image 2\)"),
    ],
)
def test_values_that_are_no_pixels_are_refused(pixels: npt.NDArray[np.generic], says: str) -> None:
    with pytest.raises(DataError, match=says):
        to_bytes([to_numbers(pixels, "toy")], "toy")


@given(
    most=st.sampled_from([1, 2, 255, 256, 1023, 4095, 4096, 30000, 65535]),
    dtype=st.sampled_from([np.uint16, np.int32, np.int64, np.uint64]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_wide_whole_numbers_of_one_set_are_scaled_alike_or_refused(most: int, dtype: npt.DTypeLike, seed: int) -> None:
    """The definition: bytes as they are, or the upper byte of 16 bits, whichever the largest of all images says."""
    pixels = np.random.default_rng(seed).integers(0, most + 1, (4, 8, 8, 1))
    pixels[0] = 0
    pixels[1, 0, 0] = most
    numbers = [to_numbers(image.astype(dtype), "toy") for image in pixels]
    if most == 1 or 255 < most < 4096:
        with pytest.raises(DataError, match=f"toy: pixels are .*{most}.*multipl"):
            to_bytes(numbers, "toy")
        return
    expected = pixels if most <= 255 else pixels // 256
    assert np.array_equal(to_bytes(numbers, "toy"), expected)


def test_a_rounding_step_outside_is_rounded_back_and_more_is_refused() -> None:
    for dtype in (np.float32, np.float64):
        inside = np.array([-0.49 / 255, 0.0, 1.0, 1 + 0.49 / 255], dtype=dtype)
        assert to_numbers(inside, "toy").tolist() == [0, 0, 255, 255]
        for value in (-0.51 / 255, 1 + 0.51 / 255):
            with pytest.raises(DataError, match="not normalised"):
                to_numbers(np.array([value], dtype=dtype), "toy")


def test_booleans_are_black_and_white() -> None:
    assert to_numbers(np.array([True, False]), "toy").tolist() == [255, 0]


def test_black_images_are_no_mask_but_zeros_and_ones_are_refused_whoever_holds_the_one() -> None:
    black, mask = np.zeros((8, 8, 1), np.uint8), np.eye(8, dtype=np.uint8)[..., None]
    assert not np.any(to_bytes([black, black], "toy"))
    assert np.array_equal(to_bytes([black, mask, mask * 2], "toy"), [black, mask, mask * 2])
    cases: list[list[Numbers]] = [[black, mask], [mask, black], [mask.astype(np.uint16), black]]
    for images in cases:
        with pytest.raises(DataError, match="0 and 1 only, of 255"):
            to_bytes(images, "toy")


def test_the_odd_sizes_are_named_and_the_usual_one_is_what_is_needed() -> None:
    sizes = [(8, 8), (9, 8), (8, 8), (8, 10)]
    with pytest.raises(DataError, match=r"2 of 4 images are 8x8, the rest not \(item 1: 9x8, item 3: 8x10\)"):
        check_sizes(sizes, "toy", lambda i: f"item {i}")


def test_grey_images_among_coloured_ones_become_coloured() -> None:
    stacked = stack([PIXELS[0], PIXELS[1][..., :1]], "toy", str)
    assert np.array_equal(stacked[0], PIXELS[0])
    assert np.array_equal(stacked[1], PIXELS[1][..., :1].repeat(3, 2))


def test_a_list_is_cut_after_the_first_few() -> None:
    assert first("abc") == "a, b, c"
    assert first("abcd") == "a, b, c, ..."


def test_channels_that_come_last_are_said_to_come_first_and_others_are_not() -> None:
    assert channels_come_first((64, 48, 3)).startswith("channels come first: (3, 64, 48), as images.transpose")
    assert channels_come_first((28, 28, 1)).startswith("channels come first: (1, 28, 28)")
    for shape in ((3, 64, 48), (1, 28, 28), (3, 8, 3), (1, 1, 1), (3, 4), (2, 8, 8)):
        assert channels_come_first(shape) == ""

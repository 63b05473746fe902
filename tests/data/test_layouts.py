from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from fedcondense.data.layouts import batch_channels_last, check_sizes, first, stack, to_uint8
from fedcondense.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), dtype=np.uint8)


def test_every_layout_of_coloured_and_grey_images_becomes_channels_last() -> None:
    assert np.array_equal(batch_channels_last(PIXELS, "toy"), PIXELS)
    assert np.array_equal(batch_channels_last(PIXELS.transpose(0, 3, 1, 2), "toy"), PIXELS)
    assert np.array_equal(batch_channels_last(PIXELS[..., 0], "toy"), PIXELS[..., :1])


@pytest.mark.parametrize("shape", [(8, 9), (5, 8, 9, 2), (0, 8, 9, 3), (5, 7, 9, 3), (5, 8, 65, 3)])
def test_other_shapes_no_images_and_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"toy: .*needed: "):
        batch_channels_last(np.zeros(shape, dtype=np.uint8), "toy")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_byte_survives_floating_point(dtype: npt.DTypeLike) -> None:
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(to_uint8((every / 255).astype(dtype), "toy"), every)
    assert np.array_equal(to_uint8(every.astype(np.int32), "toy"), every)
    assert to_uint8(every, "toy") is every


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.array([1.5]), r"pixels are float64, 1.5 to 1.5"),
        (np.array([-1]), r"pixels are int64, -1 to -1"),
        (np.array([256]), r"pixels are int64, 256 to 256"),
        (np.array(["a"]), "no numbers"),
        (np.array([[0.5], [np.nan], [np.inf]]), r"2 of 3 images hold NaN or infinity \(image 1, image 2\)"),
    ],
)
def test_values_that_are_no_pixels_are_refused(pixels: npt.NDArray[np.generic], says: str) -> None:
    with pytest.raises(DataError, match=says):
        to_uint8(pixels, "toy")


def test_the_odd_sizes_are_named_and_the_usual_one_is_what_is_needed() -> None:
    sizes = [(8, 8), (9, 8), (8, 8), (8, 10)]
    with pytest.raises(DataError, match=r"most are 8x8, but 2 of 4 are not \(item 1: 9x8, item 3: 8x10\)"):
        check_sizes(sizes, "toy", lambda i: f"item {i}")


def test_grey_images_among_coloured_ones_become_coloured() -> None:
    stacked = stack([PIXELS[0], PIXELS[1][..., :1]], "toy", str)
    assert np.array_equal(stacked[0], PIXELS[0])
    assert np.array_equal(stacked[1], PIXELS[1][..., :1].repeat(3, 2))


def test_a_list_is_cut_after_the_first_few() -> None:
    assert first("abc") == "a, b, c"
    assert first("abcd") == "a, b, c, ..."

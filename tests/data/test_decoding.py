from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedcondense.data.decoding import channels_last, from_pil, read_images
from fedcondense.errors import DataError


def written(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "F"])
def test_grey_modes_have_one_channel(mode: str) -> None:
    assert from_pil(Image.new("L", (8, 9), 255).convert(mode)).tolist() == np.full((9, 8, 1), 255).tolist()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P"])
def test_all_others_have_three(mode: str) -> None:
    assert from_pil(Image.new("RGB", (8, 9), "white").convert(mode)).tolist() == np.full((9, 8, 3), 255).tolist()


def test_sixteen_bits_keep_their_upper_byte_instead_of_clipping() -> None:
    wide = Image.fromarray(np.array([[0, 255, 256, 0x1234, 0xFFFF]], dtype=np.uint16))
    assert from_pil(wide)[0, :, 0].tolist() == [0, 0, 1, 0x12, 0xFF]


def test_files_are_read_in_their_order_and_grey_ones_become_coloured(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    files = [written(tmp_path / "b.png", colour), written(tmp_path / "a.png", colour[..., 0])]
    images = read_images(files, tmp_path)
    assert images.shape == (2, 8, 9, 3)
    assert np.array_equal(images[0], colour)
    assert np.array_equal(images[1], np.repeat(colour[..., :1], 3, axis=2))


def test_all_broken_files_are_counted_before_sizes_are_compared(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{side}.png", np.zeros((side, 8), dtype=np.uint8)) for side in (8, 9)]
    for name in ("x.png", "y.png"):
        (tmp_path / name).write_bytes(b"no image")
        files.append(tmp_path / name)
    with pytest.raises(DataError, match=r"2 of 4 images cannot be read \(x.png: .*y.png: .*\); remove them"):
        read_images(files, tmp_path)


def test_an_image_in_memory_is_the_same_in_any_layout() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    forms = [Image.fromarray(pixels), pixels, torch.from_numpy(pixels).permute(2, 0, 1), pixels / 255]
    assert all(np.array_equal(channels_last(form, "toy"), pixels) for form in forms)
    with pytest.raises(DataError, match="toy: the image is a str; needed: a PIL image, an array or a tensor"):
        channels_last("cat.png", "toy")

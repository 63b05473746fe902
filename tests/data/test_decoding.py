from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fedcondense.data.decoding import channels_last, from_pil, lost_as_rgb, read_images, readable
from fedcondense.data.layouts import to_bytes
from fedcondense.errors import DataError


def written(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La"])
def test_grey_modes_have_one_channel(mode: str) -> None:
    grey = Image.new("L", (8, 9), 255)
    image = grey.convert("LA").convert("La") if mode == "La" else grey.convert(mode)
    assert from_pil(image).tolist() == np.full((9, 8, 1), 255).tolist()


def test_floating_point_is_read_as_arrays_are() -> None:
    levels = np.linspace(0, 1, 72, dtype=np.float32).reshape(9, 8)
    assert np.array_equal(from_pil(Image.fromarray(levels))[..., 0], np.rint(levels * 255))
    for values in (levels * 255, levels - 1, np.full((9, 8), np.nan, np.float32)):
        with pytest.raises(DataError, match=r"NaN|not normalised"):
            from_pil(Image.fromarray(values))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P"])
def test_all_others_have_three(mode: str) -> None:
    assert from_pil(Image.new("RGB", (8, 9), "white").convert(mode)).tolist() == np.full((9, 8, 3), 255).tolist()


def test_sixteen_bits_keep_their_upper_byte_instead_of_clipping() -> None:
    wide = Image.fromarray(np.array([[0, 255, 256, 0x1234, 0xFFFF]], dtype=np.uint16))
    assert to_bytes([from_pil(wide)], "toy")[0][0, :, 0].tolist() == [0, 0, 1, 0x12, 0xFF]


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


DRAWN = np.zeros((9, 8), dtype=bool)
DRAWN[2:7, 3] = True


def drawing(form: str, ink: int, clear: int = 0) -> Image.Image:
    """A stroke on nothing; what is under the nothing has the level `clear`."""
    levels = np.where(DRAWN, ink, clear).astype(np.uint8)
    alpha = Image.fromarray(np.where(DRAWN, 255, 0).astype(np.uint8))
    grey = Image.fromarray(levels)
    if form in ("LA", "La"):
        image = grey.convert("LA")
        image.putalpha(alpha)
        return image.convert(form)
    if form in ("RGBA", "RGBa"):
        image = grey.convert("RGBA")
        image.putalpha(alpha)
        return image.convert(form)
    indexed = Image.fromarray(DRAWN.astype(np.uint8), "L").convert("P") if form in ("P", "P bytes") else grey
    if form in ("P", "P bytes"):
        indexed.putpalette([clear] * 3 + [ink] * 3)
    indexed = indexed.convert("RGB") if form == "RGB" else indexed
    held = io.BytesIO()
    hidden: Any = {"P": 0, "P bytes": bytes([0, 255]), "L": clear, "RGB": (clear,) * 3}[form]
    indexed.save(held, "PNG", transparency=hidden)
    return Image.open(held)


FORMS = ["LA", "La", "RGBA", "RGBa", "P", "P bytes", "L", "RGB"]


@given(form=st.sampled_from(FORMS), ink=st.integers(0, 230), clear=st.sampled_from([1, 7, 255]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_what_is_drawn_on_nothing_is_seen_on_white(form: str, ink: int, clear: int) -> None:
    """Whatever the file keeps below what is transparent."""
    clear = clear if clear != ink else ink + 1
    pixels = to_bytes([from_pil(drawing(form, ink, clear))], "toy")[0]
    assert pixels.shape[2] == (1 if form in ("LA", "La", "L") else 3)
    assert np.array_equal(pixels[..., 0], np.where(DRAWN, ink, 255))


@pytest.mark.parametrize("form", FORMS)
def test_white_drawings_on_nothing_are_refused(form: str) -> None:
    with pytest.raises(DataError, match=r"a\.png: transparent, and white"):
        from_pil(drawing(form, 255), "a.png")


def test_images_with_an_opaque_alpha_or_nothing_on_nothing_stay() -> None:
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8))
    assert np.array_equal(from_pil(colour.convert("RGBA")), np.asarray(colour))
    assert from_pil(Image.new("RGBA", (8, 9), (0, 0, 0, 0))).min() == 255
    hidden = colour.convert("RGBA")
    hidden.putalpha(0)
    with pytest.raises(DataError, match="nothing is seen on white"):
        from_pil(hidden)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_images_are_upright_as_files_and_as_items(orientation: int, ending: str, tmp_path: Path) -> None:
    levels = np.zeros((10, 16), dtype=np.uint8)
    levels[:4, :8] = 240
    held = Image.fromarray(levels).convert("RGB")
    exif = held.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    held.save(path, exif=exif, **({"lossless": True} if ending == "webp" else {"quality": 100}))
    turned = held.copy()
    turned.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(turned)).astype(int)
    with Image.open(path) as opened:
        assert abs(from_pil(opened).astype(int) - expected).max() < 16
    assert abs(read_images([path], tmp_path)[0].astype(int) - expected).max() < 16
    assert (lost_as_rgb(path) == "") == (orientation == 1 or ending == "tif")


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_several_frames_are_several_images(ending: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    with pytest.raises(
        DataError, match=rf"1 of 1 images cannot be read \(a.{ending}: an image of 3 frames; needed: one"
    ):
        read_images([tmp_path / f"a.{ending}"], tmp_path)
    assert lost_as_rgb(tmp_path / f"a.{ending}") == "all frames but one"


def test_sixteen_bits_of_each_colour_count_as_sixteen() -> None:
    """Pillow keeps their upper bytes, of which twelve bits fill four."""
    import struct
    import zlib

    def png(level: int) -> Image.Image:
        rows = b"".join(b"\0" + struct.pack(">H", level) * 3 * 8 for _ in range(8))
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        ]
        blob = b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
        return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + blob))

    assert np.unique(to_bytes([from_pil(png(0xABCD))], "toy")).tolist() == [0xAB]
    with pytest.raises(DataError, match="12 bits in 16 come out nearly black"):
        to_bytes([from_pil(png(0x0FFF))], "toy")


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.uint8, torch.bool]
)
def test_tensors_of_every_kind_are_read(dtype: torch.dtype) -> None:
    white = torch.ones(1, 8, 8, dtype=dtype) * (255 if dtype == torch.uint8 else 1)
    assert to_bytes([channels_last(white.to(dtype), "toy")], "toy")[0].min() == 255


def test_what_cannot_become_an_array_is_named() -> None:
    for image in (
        torch.zeros(1, 8, 8, dtype=torch.complex64),
        torch.zeros(1, 8, 8).to_sparse(),
    ):
        with pytest.raises(DataError, match=r"^item 3: "):
            channels_last(image, "item 3")


def test_whatever_pillow_reads_is_read(tmp_path: Path) -> None:
    endings = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".jp2", ".tga"}
    assert endings <= readable()
    assert not {".eps", ".h5", ".mpg", ".txt", ".npz"} & readable()
    colour = Image.new("RGB", (9, 8), (200, 100, 50))
    for ending in (".bmp", ".jp2", ".tga", ".ppm", ".webp"):
        colour.save(tmp_path / f"a{ending}")
        assert abs(read_images([tmp_path / f"a{ending}"], tmp_path)[0].astype(int) - (200, 100, 50)).max() < 8

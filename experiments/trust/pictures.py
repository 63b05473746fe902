"""Data that unpack to very much, and pictures that no encoder of ours writes."""

from __future__ import annotations

import io
import lzma
import zlib
from functools import cache
from typing import Any

from PIL import Image, ImageCms

__all__ = ["bombs", "pictures"]


@cache
def bombs() -> dict[str, bytes]:
    """Return small data that would unpack to very much: to 128 MB, to pictures of a side of 8192 and more."""
    zeros = bytes(1 << 27)
    deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
    deflated = b"\4" + deflate.compress(zeros) + deflate.flush()
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 0, "dict_size": 1 << 20, "lc": 0, "lp": 0, "pb": 0}]
    packed = b"\0" + lzma.compress(zeros[: 1 << 25], lzma.FORMAT_RAW, filters=filters)
    found: dict[str, bytes] = {}
    for levels in (1, 2, 4):  # bits-1, bits-2 and so on: one group with its levels
        found |= {f"deflate {levels}": bytes(1 + 2**levels) + deflated, f"lzma {levels}": bytes(1 + 2**levels) + packed}
    found |= {"deflate palette": bytes(48) + deflated, "lzma palette": bytes(48) + packed}
    for name, data in (("deflate", deflated), ("lzma", packed)):
        found[f"{name} of coefficients"] = len(data).to_bytes(4, "little") + bytes(4) + data
    found["jpeg 8192"] = _saved((8192, 8192), "L", "JPEG")
    found["webp 8192"] = _saved((8192, 8192), "RGB", "WEBP", method=0)
    for name, side in (("webp 8192", 16_383), ("jpeg 8192", 65_500)):
        found[f"{name} says {side}"] = _resized(found[name], side)
    return found


def _resized(picture: bytes, side: int) -> bytes:
    """Return a picture whose header says that it is `side` pixels wide and high."""
    if picture[:4] == b"RIFF":
        return picture[:26] + side.to_bytes(2, "little") * 2 + picture[30:]
    at = next(k for k in range(len(picture)) if picture[k : k + 2] == b"\xff\xc0")
    return picture[: at + 5] + side.to_bytes(2, "big") * 2 + picture[at + 9 :]


def _saved(size: tuple[int, int], mode: str, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    shade = Image.linear_gradient("L").resize(size) if max(size) < 1000 else Image.new("L", size)
    picture = shade.convert(mode)
    if mode == "RGBA":
        picture.putalpha(shade)
    picture.save(file, kind, **options)
    return file.getvalue()


@cache
def pictures(width: int, height: int) -> dict[str, bytes]:
    """Return pictures that no encoder of ours writes: by kind, mode and what else they hold."""
    size, exif, profile = (width, height), Image.Exif(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    exif[0x010E] = "somebody"
    marks = {"restart_marker_rows": 1}
    more = [Image.new("RGB", size, colour) for colour in ("red", "green")]
    found = {
        "jpeg without marks": _saved(size, "L", "JPEG"),
        "jpeg of fewer marks": _saved(size, "L", "JPEG", restart_marker_rows=2),
        "jpeg progressive": _saved(size, "L", "JPEG", progressive=True, **marks),
        "jpeg of four colours": _saved(size, "CMYK", "JPEG", **marks),
        "jpeg of full colour": _saved(size, "RGB", "JPEG", subsampling="4:4:4", **marks),
        "jpeg of EXIF": _saved(size, "RGB", "JPEG", exif=exif, **marks),
        "jpeg of a profile": _saved(size, "RGB", "JPEG", icc_profile=profile.tobytes(), **marks),
        "jpeg of a comment": _saved(size, "L", "JPEG", comment=b"x" * 100, **marks),
        "jpeg twice": _saved(size, "L", "JPEG", **marks) * 2,
        "webp without loss": _saved(size, "RGB", "WEBP", lossless=True),
        "webp of alpha": _saved(size, "RGBA", "WEBP"),
        "webp of EXIF": _saved(size, "RGB", "WEBP", exif=exif),
        "webp animated": _saved(size, "RGB", "WEBP", save_all=True, append_images=more),
        "webp and more": _saved(size, "RGB", "WEBP") + b"more",
        "png": _saved(size, "L", "PNG"),
        "gif": _saved(size, "L", "GIF"),
        "tiff": _saved(size, "L", "TIFF"),
        "nothing": b"",
    }
    grey = _saved(size, "L", "JPEG", **marks)
    at = grey.index(b"\xff\xc0")
    frame = grey[at : at + 2 + int.from_bytes(grey[at + 2 : at + 4], "big")]
    found["jpeg of two frames"] = grey[:at] + frame + grey[at:]
    return found

"""What picture codecs share: arrays as Pillow's images and back; format, size and mode are checked before pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcondense.errors import SettingError

__all__ = [
    "MOST_PIXELS",
    "check_channels",
    "check_library",
    "check_quality",
    "decoder",
    "read_picture",
    "write_picture",
]

MOST_PIXELS = 1 << 24
"""Of a picture: libwebp takes some 16 bytes a pixel while it decodes, four times what grey images take as float32."""


def check_quality(name: str, quality: object) -> None:
    """Refuse what is no quality.

    Raises:
        SettingError: It is none.
    """
    if type(quality) is not int or not 1 <= quality <= 100:
        raise SettingError(f"{name} of quality {quality!r}; needed: a whole number from 1 to 100")


def check_library(name: str, feature: str) -> None:
    """Refuse a format that Pillow was built without.

    Args:
        name: The codec's.
        feature: Pillow's word for it.

    Raises:
        SettingError: It was.
    """
    from PIL import features

    if not features.check(feature):
        raise SettingError(
            f"{name} needs a Pillow with {feature.upper()}, and the one installed has none; run: pip install "
            "--force-reinstall --only-binary :all: pillow"
        )


def decoder(library: str, feature: str) -> str:
    """Return what decodes a format here, with versions: ``"Pillow 12.0.0, libwebp 1.6.0"``.

    Args:
        library: Its name.
        feature: Pillow's word for it.
    """
    import PIL
    from PIL import features

    return f"Pillow {PIL.__version__}, {library} {features.version(feature)}"


def check_channels(name: str, shape: tuple[int, int, int], most: int) -> None:
    """Refuse images that a picture format has no place for.

    Raises:
        SettingError: They have neither one nor three channels, or a side longer than `most`.
    """
    if shape[0] not in (1, 3):
        raise SettingError(f"{name} stores one channel or three, these images have {shape[0]}; choose bits-1 to bits-6")
    if max(shape[1:]) > most:
        raise SettingError(f"{name} stores at most {most} values a side, these images have {shape[1:]}; choose bits-2")


def write_picture(image: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    """Return (C, H, W) of one channel or three as a file of a format."""
    from PIL import Image

    file = io.BytesIO()
    pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def read_picture(data: bytes, kind: str, mode: str, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return a file of unknown origin as (C, H, W); pixels are read only if they are as many as expected.

    Pillow's WebP takes memory for a picture before its size can be asked for: its caller has looked at the header.

    Args:
        data: The file.
        kind: Its format, the only one that is tried.
        mode: Its mode in Pillow, the only one that is taken.
        shape: What it has to be; grey that is stored in three channels is taken back.

    Raises:
        ValueError: It is another picture, or none.
    """
    from PIL import Image

    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as picture:
            if picture.size != (width, height) or picture.mode != mode:
                raise ValueError(f"a picture of {picture.size} {picture.mode}; needed: {(width, height)} {mode}")
            pixels = np.array(picture.convert("L") if channels == 1 else picture)
    except ValueError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds on damaged files
        raise ValueError(f"no picture of kind {kind} ({type(error).__name__})") from None
    return pixels.reshape(1, height, width) if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

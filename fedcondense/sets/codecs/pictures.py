"""What picture codecs share: arrays as Pillow's images and back; format, size and mode are checked before pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcondense.errors import SettingError

__all__ = ["check_channels", "check_quality", "read_picture", "write_picture"]


def check_quality(name: str, quality: object) -> None:
    """Refuse what is no quality.

    Raises:
        SettingError: It is none.
    """
    if type(quality) is not int or not 1 <= quality <= 100:
        raise SettingError(f"{name} of quality {quality!r}; needed: a whole number from 1 to 100")


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
            if getattr(picture, "n_frames", 1) != 1:
                raise ValueError("a picture of several frames; needed: one")
            pixels = np.array(picture.convert("L") if channels == 1 else picture)
    except ValueError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds on damaged files
        raise ValueError(f"no picture of kind {kind} ({type(error).__name__})") from None
    return pixels.reshape(1, height, width) if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

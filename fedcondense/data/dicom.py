"""DICOM files as images, by the extra ``dicom``: one frame each, grey through the file's own window.

Grey values go through the modality's rescaling and then the first window that the file names (DICOM PS3.3 C.11.2.1.2,
linear): what lies below is black, what lies above white. A file that names none keeps all values its bits can hold.
MONOCHROME1 is inverted, so that higher is brighter everywhere. Nothing but pixels is read into a record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedcondense.data.layouts import Numbers
from fedcondense.errors import DataError, MissingExtraError

__all__ = ["ENDINGS", "is_dicom", "pixels_of", "size_of"]

ENDINGS = frozenset({".dcm", ".dicom"})
_WHITE = 65535


def is_dicom(path: Path) -> bool:
    """Say whether a file is one by its ending."""
    return path.suffix.lower() in ENDINGS


def size_of(path: Path) -> tuple[int, int]:
    """Return (H, W) from the header."""
    header = _read(path, stop_before_pixels=True)
    return int(header.Rows), int(header.Columns)


def pixels_of(path: Path, name: str) -> Numbers:
    """Return (H, W, 1) uint16 of a grey file, whose window fills 16 bits, or (H, W, 3) uint8 of a coloured one.

    Raises:
        DataError: It has several frames, or a kind of pixels that is neither.
        MissingExtraError: pydicom is not installed.
    """
    header = _read(path)
    if int(getattr(header, "NumberOfFrames", None) or 1) > 1:
        raise DataError(f"{name}: {header.NumberOfFrames} frames; needed: one, so save the frames that count as files")
    from pydicom.pixels.processing import apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    kind = str(header.PhotometricInterpretation)
    pixels = pixel_array(header)  # of YBR colours, RGB
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
            raise DataError(f"{name}: {kind} pixels of {pixels.dtype}; needed: grey values, or colours of 8 bits")
        colours: Numbers = pixels
        return colours
    values = np.asarray(apply_modality_lut(pixels, header), dtype=np.float64)
    low, high = _window(header)
    share = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    bright = 1 - share if kind == "MONOCHROME1" else share
    grey: Numbers = np.rint(bright * _WHITE).astype(np.uint16)[..., None]
    return grey


def _window(header: Any) -> tuple[float, float]:
    """Return the values that are black and white: of the first window, or of what the bits can hold."""
    centre, width = getattr(header, "WindowCenter", None), getattr(header, "WindowWidth", None)
    if centre is not None and width is not None:
        middle, wide = (float(v[0] if hasattr(v, "__len__") and not isinstance(v, str) else v) for v in (centre, width))
        return middle - 0.5 - (wide - 1) / 2, middle - 0.5 + (wide - 1) / 2
    bits = int(header.BitsStored)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if int(header.PixelRepresentation) else (0, 2**bits - 1)
    slope, offset = float(getattr(header, "RescaleSlope", 1)), float(getattr(header, "RescaleIntercept", 0))
    return slope * low + offset, slope * high + offset


def _read(path: Path, **how: Any) -> Any:
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError("pydicom", "dicom") from None
    return pydicom.dcmread(path, **how)

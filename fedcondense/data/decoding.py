"""Image files and images in memory become (H, W, C) in one way, whichever way they came.

What is transparent is laid on white, for all images alike; where a drawing would then not be seen it is refused. EXIF
orientations are applied. A file or an image of several frames is refused, since it is several images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fedcondense.data import dicom
from fedcondense.data.layouts import (
    Numbers,
    Uint8Images,
    batch_channels_last,
    check_sizes,
    first,
    stack,
    to_bytes,
    to_numbers,
)
from fedcondense.data.sizes import resized
from fedcondense.errors import DataError, MissingExtraError
from fedcondense.progress import reporting

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["channels_last", "from_pil", "lost_as_rgb", "read_images", "readable"]

_GREY = ("1", "L", "LA", "La")
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_ORIENTATION = 0x0112  # the EXIF tag
_FRAMES_OF_ONE = ("MPO", "PSD")  # a photograph with its preview, an image with its layers
_UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}  # Pillow knows them, and decodes none by itself
_SEEN = 16  # levels between the darkest and the brightest pixel, below which a drawing is not seen


@lru_cache(maxsize=1)
def readable() -> frozenset[str]:
    """Return the endings of image files, lower case, with the dot: those that Pillow decodes here, and DICOM's."""
    from PIL import Image

    Image.init()
    known = (ending for ending, kind in Image.EXTENSION.items() if kind in Image.OPEN and kind not in _UNREADABLE)
    return frozenset(known) | dicom.ENDINGS


def read_images(
    files: Sequence[Path],
    top: Path,
    size: int = 0,
    broken: dict[int, str] | None = None,
    leave_out: str = "--skip-broken, or skip-broken = true at a node",
) -> Uint8Images:
    """Read image files of one size, or bring them to one; sizes are known from headers, before a pixel is decoded.

    Args:
        files: One image each.
        top: The folder that errors name, and that paths in them are relative to.
        size: Pixels a side that all are brought to (`resized`); 0: they have one size.
        broken: Takes the places of files that cannot be read, and why, and those are left out; None: they are refused.
        leave_out: What lets a user leave them out, where the caller can be told to.

    Returns:
        (N, H, W, C), uint8; grey images among coloured ones become coloured.

    Raises:
        DataError: Some cannot be read, all are broken, or their sizes differ.
    """
    from PIL import Image

    failed: dict[int, str] = {}

    def read(use: Callable[[Image.Image, str], Any], of_dicom: Callable[[Path, str], Any]) -> list[Any]:
        results = []
        for place, path in enumerate(files):
            report(place / len(files), f"{place} of {len(files)}")
            if place in failed:
                continue
            name = str(path.relative_to(top))
            try:
                if dicom.is_dicom(path):
                    results.append(of_dicom(path, name))
                    continue
                with Image.open(path) as image:
                    results.append(use(image, name))
            except MissingExtraError:
                raise
            except DataError as error:
                failed[place] = str(error)
            except Exception as error:  # Pillow's readers raise at least nine kinds for damaged files
                failed[place] = f"{name}: {error or type(error).__name__}"
        if failed and (broken is None or len(failed) == len(files)):
            then = "" if len(failed) == len(files) else f", or have them left out: {leave_out}"
            raise DataError(
                f"{top}: {len(failed)} of {len(files)} images cannot be read ({first(failed.values())}); remove them "
                f"or save them anew{then}"
            )
        return results

    with reporting(f"reading {top.name}") as report:
        if not size and broken is None:
            check_sizes(
                read(lambda image, _: _size(image), lambda path, _: dicom.size_of(path)), str(top), _namer(files, top)
            )
        decoded = read(
            lambda image, name: resized(from_pil(image, name), size),
            lambda path, name: resized(dicom.pixels_of(path, name), size),
        )
    if broken is not None:
        broken |= failed
    left = [file for place, file in enumerate(files) if place not in failed]
    return stack(to_bytes(decoded, str(top)), str(top), _namer(left, top))


def _namer(files: Sequence[Path], top: Path) -> Callable[[int], str]:
    return lambda i: str(files[i].relative_to(top))


def channels_last(image: Any, name: str, size: int = 0) -> Numbers:
    """Return one image as (H, W, C), in numbers that `to_bytes` takes, of a size if there is one."""
    try:
        if isinstance(image, Tensor):
            image = image.detach().cpu()
            array = (image.float() if image.is_floating_point() else image).numpy()  # numpy has no bfloat16
        elif isinstance(image, np.ndarray):
            array = image
        elif hasattr(image, "convert") and hasattr(image, "getbands"):
            return resized(from_pil(image, name), size)
        else:
            raise DataError(f"{name}: the image is a {type(image).__name__}; needed: a PIL image, an array or a tensor")
    except DataError:
        raise
    except Exception as error:  # an image that is opened when it is asked for, or a tensor of an odd kind
        raise DataError(f"{name}: the image cannot be read ({type(error).__name__}: {error}); remove it") from error
    only: Numbers = to_numbers(batch_channels_last(array[None], name, bool(size)), name)[0]
    return resized(only, size)


def from_pil(image: Image, name: str = "image") -> Numbers:
    """Return (H, W, 1) of a grey image and (H, W, 3) of any other, upright and without transparency.

    Raises:
        DataError: It has several frames, more than 16 bits, or is drawn in white on nothing.
    """
    from PIL import ImageOps

    if getattr(image, "is_animated", False) and image.format not in _FRAMES_OF_ONE:
        frames = getattr(image, "n_frames", 0)
        raise DataError(f"{name}: an image of {frames} frames; needed: one, so save the frames that count as files")
    upper_bytes = _is_cut_to_8_bits(image)
    image = ImageOps.exif_transpose(image)
    clear = image.mode in _WITH_ALPHA or "transparency" in image.info
    if image.mode.startswith("I") or image.mode == "F":  # PIL's own conversions clip at 255
        if clear:
            raise DataError(f"{name}: transparency in an image of more than 8 bits; save it with 8 bits")
        return to_numbers(np.asarray(image)[..., None], name)
    if clear:
        pixels = _on_white(image, name)
        pixels = pixels[..., :1] if image.mode in _GREY else pixels
    elif image.mode in _GREY:
        pixels = np.array(image.convert("L"), dtype=np.uint8)[..., None]
    else:
        pixels = np.array(image.convert("RGB"), dtype=np.uint8)
    return pixels.astype(np.uint16) << np.uint16(8) if upper_bytes else pixels


def lost_as_rgb(path: str | Path) -> str:
    """Say what `Image.open(path).convert("RGB")` loses, which is how torchvision opens files; empty: nothing."""
    from PIL import Image

    with Image.open(path) as image:
        if getattr(image, "is_animated", False) and image.format not in _FRAMES_OF_ONE:
            return "all frames but one"
        if image.mode.startswith("I") or image.mode == "F" or _is_cut_to_8_bits(image):
            return "bits beyond 8"
        clear = image.mode in _WITH_ALPHA or "transparency" in image.info
        if clear and image.convert("RGBA").getchannel("A").getextrema()[0] != 255:
            return "transparency"
        return "" if _orientation(image) == 1 else "the EXIF orientation"


def _on_white(image: Image, name: str) -> Uint8Images:
    """Lay an image on white, (H, W, 3); black would do for white drawings, but two images would differ by it."""
    from PIL import Image as Pillow

    direct = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)  # colours that are multiplied by their alpha
    given = (image.convert(direct) if direct else image).convert("RGBA")
    before = np.array(given, dtype=np.uint8)
    if before[..., 3].min(initial=255) == 255:
        return before[..., :3]
    white = Pillow.new("RGBA", given.size, "white")
    after = np.array(Pillow.alpha_composite(white, given).convert("RGB"), dtype=np.uint8)
    if np.ptp(after) < _SEEN and (np.ptp(before[..., 3]) >= _SEEN or np.ptp(before[..., :3]) >= _SEEN):
        raise DataError(
            f"{name}: transparent, and white or empty where it is not, so that nothing is seen on white; lay all "
            "images on one dark ground"
        )
    return after


def _is_cut_to_8_bits(image: Image) -> bool:
    """Say whether a file holds 16 bits of each colour, of which Pillow reads the upper eight."""
    wide = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()) or ())
    return wide and not image.mode.startswith("I")


def _size(image: Image) -> tuple[int, int]:
    """Return (H, W) of an image as it is shown, from its header."""
    return (image.width, image.height) if _orientation(image) in (5, 6, 7, 8) else (image.height, image.width)


def _orientation(image: Image) -> int:
    """Return what the EXIF header of an open file says, 1 to 8; 1 of a TIFF, which Pillow itself turns."""
    if image.format == "TIFF" or "exif" not in image.info:  # to ask a PNG without would decode it
        return 1
    return int(image.getexif().get(_ORIENTATION, 1))

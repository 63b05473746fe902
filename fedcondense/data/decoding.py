"""Image files and images in memory become (H, W, C), uint8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fedcondense.data.layouts import Uint8Images, batch_channels_last, check_sizes, first, stack, to_uint8
from fedcondense.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["channels_last", "from_pil", "read_images"]


def read_images(files: Sequence[Path], top: Path) -> Uint8Images:
    """Read image files of one size; sizes are known from headers, before a pixel is decoded.

    Args:
        files: One image each.
        top: The folder that errors name, and that paths in them are relative to.

    Returns:
        (N, H, W, C), uint8; grey images among coloured ones become coloured.

    Raises:
        DataError: Some cannot be read, or their sizes differ.
    """
    from PIL import Image

    def read(use: Callable[[Image.Image], Any]) -> list[Any]:
        results, broken = [], []
        for path in files:
            try:
                with Image.open(path) as image:
                    results.append(use(image))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                broken.append(f"{path.relative_to(top)}: {error}")
        if broken:
            raise DataError(
                f"{top}: {len(broken)} of {len(files)} images cannot be read ({first(broken)}); remove them"
            )
        return results

    sizes = read(lambda image: (image.height, image.width))
    check_sizes(sizes, str(top), lambda i: str(files[i].relative_to(top)))
    return stack(read(from_pil), str(top), lambda i: str(files[i].relative_to(top)))


def channels_last(image: Any, name: str) -> Uint8Images:
    """Return one image as (H, W, C), uint8."""
    if isinstance(image, Tensor):
        array = image.detach().cpu().numpy()
    elif isinstance(image, np.ndarray):
        array = image
    elif hasattr(image, "convert") and hasattr(image, "getbands"):
        return from_pil(image)
    else:
        raise DataError(f"{name}: the image is a {type(image).__name__}; needed: a PIL image, an array or a tensor")
    only: Uint8Images = to_uint8(batch_channels_last(array[None], name), name)[0]
    return only


def from_pil(image: Image) -> Uint8Images:
    """Return (H, W, 1) of a grey image and (H, W, 3) of any other."""
    if image.mode.startswith("I;16") or image.mode == "I":
        return (np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)[..., None]  # PIL's own conversion clips at 255
    if image.mode in ("1", "L", "LA", "F"):
        return np.array(image.convert("L"), dtype=np.uint8)[..., None]
    return np.array(image.convert("RGB"), dtype=np.uint8)

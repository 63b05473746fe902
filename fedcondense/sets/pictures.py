"""Pictures of a set, drawn with Pillow: grids of images, with the classes named."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.errors import SettingError
from fedcondense.sets.by_class import images_by_class

if TYPE_CHECKING:
    from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["drawn", "grid", "png", "printable", "show_set"]

_PAPER, _TEXT = 255, 40  # grey levels of the grid's background and its class names
_LARGEST_PICTURE = 200_000_000  # screen pixels that `show_set` draws: 600 MB; a set in a file is a stranger's
_LONGEST = 24  # characters of a class name that `show_set` draws


def grid(images: Tensor, columns: int, scale: int = 1, gap: int = 1) -> Image.Image:
    """Lay images out row by row.

    Args:
        images: (N, C, H, W), floating point in [0, 1]; C is 1 or 3. Values outside are clipped, NaN is drawn black.
        columns: Images per row, at least 1.
        scale: Screen pixels per stored pixel, nearest neighbour: the picture shows the stored values.
        gap: Screen pixels between two images.

    Returns:
        An RGB image; the gaps and the cells left over are white.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise SettingError(f"images are {tuple(images.shape)}; a grid needs (N, C, H, W) with 1 or 3 channels")
    if columns < 1 or scale < 1:
        raise SettingError(f"columns {columns} and scale {scale} were asked for; both must be at least 1")
    cells = np.nan_to_num(images.detach().cpu().float().numpy(), nan=0.0).clip(0, 1)
    cells = np.round(cells * 255).astype(np.uint8).transpose(0, 2, 3, 1).repeat(scale, 1).repeat(scale, 2)
    number, height, width, channels = cells.shape
    rows = -(-number // columns)
    size = (max(rows * (height + gap) - gap, 1), max(columns * (width + gap) - gap, 1), 3)
    canvas = np.full(size, _PAPER, np.uint8)
    for i, cell in enumerate(cells if channels == 3 else cells.repeat(3, 3)):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        canvas[y : y + height, x : x + width] = cell
    return Image.fromarray(canvas)


def png(image: Image.Image) -> bytes:
    """Encode as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@in_own_state
def show_set(synthetic: SyntheticSet, path: str | Path, columns: int | None = None, scale: int | None = None) -> Path:
    """Write a PNG with a row for each class of the set, its name beside it.

    Args:
        synthetic: The set; what it decodes to is drawn.
        path: Where to write; an existing file is replaced.
        columns: Images per row; a class with more goes on below. Default: all of a class, at most 20.
        scale: Screen pixels per stored pixel. Default: the longer side of an image takes about 64 screen pixels.

    Returns:
        The path.

    Raises:
        SettingError: The picture would be too large.
    """
    path = Path(path)
    path.write_bytes(png(drawn(synthetic, columns, scale)))
    return path


def drawn(
    synthetic: SyntheticSet, columns: int | None = None, scale: int | None = None, most: int | None = None
) -> Image.Image:
    """Draw a set as `show_set` does.

    Args:
        synthetic: The set.
        columns: As there.
        scale: As there.
        most: Images of a class that are drawn; None: all.
    """
    rows = [(name, images[:most]) for name, images in images_by_class(synthetic).items()]
    scale = scale or max(1, 64 // max(synthetic.shape[1:]))
    columns = columns or min(20, max((len(images) for _, images in rows), default=1))
    places = columns * sum(-(-len(images) // columns) for _, images in rows)
    if (size := places * math.prod(synthetic.shape[1:]) * scale**2) > _LARGEST_PICTURE:
        raise SettingError(
            f"a picture of {size:,} screen pixels; allowed: {_LARGEST_PICTURE:,}; `export` writes each image by itself"
        )
    return _named_rows([(name, grid(images, columns, scale)) for name, images in rows])


def _named_rows(rows: Sequence[tuple[str, Image.Image]], gap: int = 6) -> Image.Image:
    """Put a name to the left of each picture and the pairs under each other."""
    font = ImageFont.load_default(13)
    names = [printable(name) for name, _ in rows]
    margin = 3 * gap + max((int(font.getlength(name)) for name in names), default=0)
    width = margin + gap + max((picture.width for _, picture in rows), default=1)
    height = gap + sum(picture.height + gap for _, picture in rows)
    canvas = Image.new("RGB", (width, height), (_PAPER,) * 3)
    draw, y = ImageDraw.Draw(canvas), gap
    for name, (_, picture) in zip(names, rows, strict=True):
        canvas.paste(picture, (margin, y))
        draw.text((margin - gap, y + picture.height / 2), name, fill=(_TEXT,) * 3, font=font, anchor="rm")
        y += picture.height + gap
    return canvas


def printable(name: str, longest: int = _LONGEST) -> str:
    """Shorten a class name and drop what would break a line: names in a file are a stranger's."""
    text = "".join(c if c.isprintable() else " " for c in name)
    return text if len(text) <= longest else text[: longest - 1] + "…"

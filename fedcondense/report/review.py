"""The page on which a site's people look at what would leave: images beside the records that they are closest to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedcondense.files import write_file
from fedcondense.report.html import embedded, rendered
from fedcondense.sets.pictures import grid, png, printable

if TYPE_CHECKING:
    from fedcondense.flower.holding import HeldAnswer
    from fedcondense.flower.preview import Beside

__all__ = ["write_review"]

_SHOWN, _COLUMNS = 24, 12  # pairs of a class, the closest first; pairs beside each other


def write_review(path: Path, held: HeldAnswer, payload: Any, beside: Mapping[str, Beside]) -> Path:
    """Write the page, which only its owner reads: it shows records.

    Args:
        path: Where; a file that is there is replaced.
        held: What would leave.
        payload: Its content.
        beside: As `look_at` returns.
    """
    classes = [_class(name, one, held.counts.get(name, 0)) for name, one in beside.items()]
    kind = type(payload).__name__.lower()
    page = rendered("review.html.j2", held=held, classes=classes, kind=kind)
    return write_file(path, page.encode(errors="replace"), overwrite=True, private=True)


def _class(name: str, one: Beside, records: int) -> dict[str, Any]:
    order = one.distances.argsort()[:_SHOWN]
    scale = max(1, 64 // max(one.images.shape[2:]))
    rows = []
    for piece in order.split(_COLUMNS):
        blank = one.images.new_ones(_COLUMNS - len(piece), *one.images.shape[1:])
        rows += [one.images[piece], blank, one.records[piece], blank]
    return {
        "name": printable(name),
        "records": records,
        "images": len(one.images),
        "shown": len(order),
        "closest": float(one.distances.min()),
        "picture": embedded(png(grid(torch.cat(rows), _COLUMNS, scale, gap=3)), "image/png"),
    }

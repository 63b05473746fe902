"""Values of a file that anybody may have written, each of the kind that is needed or empty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["list_of", "mapping_of", "number_of"]


def mapping_of(value: Any) -> Mapping[str, Any]:
    """Return a mapping, empty in the place of anything else."""
    return value if isinstance(value, Mapping) else {}


def list_of(value: Any) -> list[Any]:
    """Return a list, empty in the place of anything else."""
    return value if isinstance(value, list) else []


def number_of(value: Any) -> float:
    """Return a number, nan in the place of anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan

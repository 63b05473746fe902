"""Whether one accuracy is above another, or the test records are too few to tell."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["doubt"]

_NORMAL = 1.96  # of 95 percent, two-sided


def doubt(shares: Iterable[float], records: float, errors: Iterable[float] = ()) -> float:
    """Return half the 95 percent interval of the difference of two shares, in points.

    Each share has one right and one wrong record added, so that the interval is sound on few records and near 0 and 100
    (Agresti and Caffo, The American Statistician 2000). The two count as independent: on the same records, where
    networks mostly err together, the interval is rather too wide.

    Args:
        shares: The two, in percent.
        records: On how many each was measured; nan: unknown, and the errors alone count.
        errors: Standard errors of other origin, in points, such as those over seeds.

    >>> round(doubt([85.0, 87.5], 40), 1), round(doubt([85.0, 87.5], 10_000), 1)
    (15.5, 1.0)
    """
    of_records = [] if not records >= 1 else [_error(share, records) for share in shares]
    return _NORMAL * math.hypot(*of_records, *errors)


def _error(share: float, records: float) -> float:
    right = (share / 100 * records + 1) / (records + 2)
    return 100 * math.sqrt(max(0.0, right * (1 - right)) / (records + 2))

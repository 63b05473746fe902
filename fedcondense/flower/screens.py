"""What becomes of a set of which a screen wants less; the screens themselves are functions of `contract.Screen`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from fedcondense.errors import SettingError
from fedcondense.flower.contract import Verdict
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["weighed"]


def weighed(synthetic: SyntheticSet, judged: Mapping[str, Verdict]) -> SyntheticSet | None:
    """Return what is left of a set when some of its classes count less; None: nothing.

    A class of weight w keeps the first w of its stored images, rounded up. A set of soft labels or shared codes cannot
    be cut, and is left out as a whole.
    """
    stored: Counter[str] = Counter()
    for part in synthetic.parts:
        stored.update(part.record.classes[label] for label in part.labels().tolist())
    left = {name for name in synthetic.classes if name not in judged or judged[name].weight > 0}
    most = {name: math.ceil(verdict.weight * stored[name]) for name, verdict in judged.items()}
    try:
        return synthetic.restrict(left, most)
    except SettingError:
        return None

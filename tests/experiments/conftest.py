"""The scripts under experiments are no installed package: their tests find them here."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent / "experiments"))

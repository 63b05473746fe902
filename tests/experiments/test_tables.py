"""What the pages quote is what the results say: `experiments/tables.py` would change nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("avalanche", reason="the tables of streams import their protocols")

ROOT = Path(__file__).parent.parent.parent


def test_the_tables_of_all_pages_are_those_of_the_results() -> None:
    ended = subprocess.run(
        [sys.executable, "experiments/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr

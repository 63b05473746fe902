"""`data`: where each set is, or is looked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def test_data_says_where_each_set_is_or_is_looked_for(cli: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x_train=np.zeros((2, 8, 8), np.uint8), y_train=np.zeros(2, np.int64),
             x_test=np.zeros((2, 8, 8), np.uint8), y_test=np.zeros(2, np.int64))  # fmt: skip
    result = cli.done("data", "--data-root", tmp_path)
    assert result["root"] == str(tmp_path)
    assert result["data"]["digits"]["where"] == "scikit-learn"
    assert result["data"]["mnist"]["where"] is None
    assert result["data"]["own"]["where"] == str(tmp_path / "own.npz")
    assert str(tmp_path) in cli.run("data", "--data-root", tmp_path).stderr

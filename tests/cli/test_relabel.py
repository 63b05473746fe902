"""`relabel`: soft labels, their bytes counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedcondense.sets.synthetic import SyntheticSet

KEYS = [
    *("data", "method", "ipc", "images", "nbytes", "codec", "seconds", "network", "accuracy", "accuracy_std", "output")
]


def test_relabel_prints_the_documented_keys_and_counts_the_bytes(cli: Any, made: Path, tmp_path: Path) -> None:
    output = tmp_path / "taught.safetensors"
    found = cli.done("relabel", made, "--output", output, "--network", "convnet1-w16", "--seeds", 1)
    assert list(found) == KEYS
    assert found["nbytes"] == output.stat().st_size > SyntheticSet.load(made).nbytes
    assert found["method"] == "mmd-ridge, labels 0.5 by 1 convnet1-w16 at temperature 2"
    assert "exists" in cli.refused("relabel", made, "--output", output)
    assert "a share above 0" in cli.refused("relabel", made, "--output", tmp_path / "b.safetensors", "--share", 0)

"""`show`: a set as a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def test_show_writes_a_png(cli: Any, made: Path, tmp_path: Path) -> None:
    output = tmp_path / "grid.png"
    assert cli.done("show", made, "--output", output) == {
        "output": str(output),
        "images": 10,
        "nbytes": made.stat().st_size,
        "codec": "raw",
    }
    assert output.read_bytes().startswith(b"\x89PNG")

"""The release sheet of a site: what left is there whole, and lines that become cards say their columns."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

from fedcondense.flower.caps import Caps
from fedcondense.flower.node_log import LogLine
from fedcondense.flower.release import Released
from fedcondense.report.release import write_release


def test_a_line_has_the_whole_hash_its_remark_and_its_columns(tmp_path: Path) -> None:
    digest = "3f9a20c1" * 8
    line = LogLine(
        "2026-11-30T13:05:01", "condense", 1, 7, "0.9", reason="agreed <there>", nbytes=48_213, sha256=digest
    )
    caps = asdict(Caps())
    found = Released(
        *("north", tmp_path / "log", [line], 48_213, 0, 50, caps, 0.0, "at once", "to the server", "no"),
        meaning={"condense": "images, made"},
    )
    text = write_release(tmp_path / "sheet.html", found, "0.9").read_text()
    (body,) = re.findall(r"<tbody>(.*?)</tbody>", text, re.DOTALL)
    assert digest in body
    assert "<dt>condense</dt><dd>images, made</dd>" in text
    assert "agreed &lt;there&gt;" in body
    cells = re.findall(r"<td[^>]*>", body)
    assert len(cells) == text.count("<th>") == 7
    assert all("data-label=" in cell for cell in cells)

"""Markdown, CSV, the matrix, and where it stops to pay."""

from __future__ import annotations

import csv
import io

import pytest

from fedcondense.sweeps.rows import KEYS, Row
from fedcondense.sweeps.tables import conclusions, crossings, matrix, to_csv, to_markdown


def row(objective: str, accuracy: float | None = 80.0, ipc: int | None = 10, **more: object) -> Row:
    values: dict[str, object] = {
        "parametrization": "pixels",
        "data": "data",
        "network": "",
        "test_network": "net",
        "nbytes": 1234,
        "accuracy_std": 1.0,
        "sets": 2,
        "networks": 3,
    }
    return Row(objective=objective, accuracy=accuracy, ipc=ipc, **(values | more))  # type: ignore[arg-type]


class TestMarkdown:
    def test_has_a_line_a_row_and_as_many_cells_as_titles(self) -> None:
        lines = to_markdown([row("random", 70.0), row("dm", 80.0)]).split("\n\n")[0].splitlines()
        assert len(lines) == 4
        assert len({line.count("|") for line in lines}) == 1
        assert "| data | 10 | 1,234 | dm | pixels |  | net | 80.0 ± 1.0 | 2 x 3 |" in lines[3]

    def test_warnings_and_errors_are_footnotes_each_text_once(self) -> None:
        rows = [
            row("dm", warnings=("weak", "spread")),
            row("dsa", warnings=("weak",)),
            row("kip", None, error="does not fit", failed=2),
        ]
        text = to_markdown(rows)
        assert "80.0 ± 1.0[^1][^2] |" in text
        assert "80.0 ± 1.0[^1] |" in text
        assert "failed[^3] |" in text
        assert text.endswith("[^1]: weak\n[^2]: spread\n[^3]: 2 failed: does not fit\n")

    def test_columns_that_no_row_fills_are_left_out(self) -> None:
        assert "LRS" not in to_markdown([row("dm")])
        assert "2505.13300" in to_markdown([row("dm", lrs=20.0)])
        assert "| LRS | ARS |" in to_markdown([row("dm", lrs=20.0, ars=30.0)])
        assert "lr = 0.01" in to_markdown([row("dm", varied="lr", value=0.01)])

    def test_a_border_in_a_name_stays_in_its_cell(self) -> None:
        lines = to_markdown([row("a|b\nc")]).split("\n\n")[0].splitlines()
        assert len(lines) == 3
        assert r"a\|b c" in lines[2]


def test_csv_has_the_keys_and_empty_cells_for_none() -> None:
    text = to_csv([row("dm", warnings=("a", "b")), row("all-real", ipc=None)])
    first, second = csv.DictReader(io.StringIO(text))
    assert list(first) == list(KEYS)
    assert (first["accuracy"], first["warnings"], first["ipc"]) == ("80.0", "a; b", "10")
    assert second["ipc"] == ""


def test_the_matrix_has_a_line_for_each_maker_and_a_column_for_each_tester() -> None:
    rows = [
        row("random", 50.0, test_network=b) if a is None else row("dm", 60.0, network=a, test_network=b)
        for a in (None, "x", "y")
        for b in ("x", "y")
    ]
    lines = matrix(rows).splitlines()
    assert lines[0] == r"| made with \ tested with | x | y |"
    assert lines[2:] == [
        "| random | 50.0 ± 1.0 | 50.0 ± 1.0 |",
        "| dm, x | 60.0 ± 1.0 | 60.0 ± 1.0 |",
        "| dm, y | 60.0 ± 1.0 | 60.0 ± 1.0 |",
    ]


class TestWhereItStopsToPay:
    @staticmethod
    def scaled(*distilled: float) -> list[Row]:
        """Return rows at ipc 1, 10, 100 beside random 50, 60, 70 and k-means 55, 65, 75, all with a deviation of 1."""
        rows = []
        for k, (ipc, accuracy) in enumerate(zip((1, 10, 100), distilled, strict=True)):
            rows += [row("random", 50.0 + 10 * k, ipc), row("k-means", 55.0 + 10 * k, ipc), row("dm", accuracy, ipc)]
        return rows

    @pytest.mark.parametrize(
        ("distilled", "says"),
        [
            ((60, 70, 75.5), "dm (pixels) pays up to ipc 10; from ipc 100 on, k-means does as well"),
            ((60, 70, 80), "dm (pixels) pays up to ipc 100, the largest that was measured"),
            ((55, 65, 75), "dm (pixels) does not pay: from ipc 1 on, k-means does as well"),
            ((55, 70, 75), "dm (pixels) pays up to ipc 10; from ipc 100 on, k-means does as well"),
        ],
    )
    def test_is_said_in_one_sentence(self, distilled: tuple[float, ...], says: str) -> None:
        assert conclusions(self.scaled(*distilled)) == [f"data, net: {says}"]

    def test_needs_real_images_to_compare_with(self) -> None:
        assert crossings([row("dm", 80.0, 1)]) == []

    def test_a_size_that_failed_is_not_counted(self) -> None:
        rows = [r if (r.objective, r.ipc) != ("dm", 100) else row("dm", None, 100) for r in self.scaled(60, 70, 0)]
        assert crossings(rows)[0].wins == 10
        assert crossings(rows)[0].ties is None

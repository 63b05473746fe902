from __future__ import annotations

import pytest

from fedcondense.report.units import human_bytes


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (2.5e12, "2.5e+03 GB")]
)
def test_bytes_are_written_with_three_digits(nbytes: float, text: str) -> None:
    assert human_bytes(nbytes) == text

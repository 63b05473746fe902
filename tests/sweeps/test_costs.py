from __future__ import annotations

import re
import sys

import pytest
import torch

import fedcondense
from fedcondense.sweeps.costs import code_version, peak_memory


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not forget an earlier peak")
def test_the_peak_is_of_what_is_done_inside_and_not_of_what_was_before() -> None:
    large = 200_000_000
    torch.zeros(large, dtype=torch.uint8).fill_(1)  # gone again
    with peak_memory("cpu") as at_peak:
        before = at_peak()
        assert before is not None
        torch.zeros(large // 2, dtype=torch.uint8).fill_(1)
        after = at_peak()
    assert after is not None
    assert 0.9 * large / 2 < after - before < 0.9 * large


def test_the_version_names_the_commit_of_a_checkout() -> None:
    assert re.fullmatch(
        rf"{re.escape(fedcondense.__version__)}(\+([0-9a-f]{{7,40}}|unknown)(-dirty)?)?", code_version()
    )

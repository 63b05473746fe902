from __future__ import annotations

import re
import subprocess
import sys

import pytest

import fedcondense
from fedcondense.sweeps.costs import code_version


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not forget an earlier peak")
def test_the_peak_is_of_what_is_done_inside_and_not_of_what_was_before() -> None:
    """In a process of its own: what a long one has freed it may be given again, which is no new peak."""
    code = (
        "import torch; from fedcondense.sweeps.costs import peak_memory\n"
        "torch.zeros(200_000_000, dtype=torch.uint8).fill_(1)  # gone again\n"
        "with peak_memory('cpu') as at_peak:\n"
        "    before = at_peak()\n"
        "    torch.zeros(100_000_000, dtype=torch.uint8).fill_(1)\n"
        "    print(at_peak() - before)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 90_000_000 < int(told) < 180_000_000


def test_the_version_names_the_commit_of_a_checkout() -> None:
    assert re.fullmatch(
        rf"{re.escape(fedcondense.__version__)}(\+([0-9a-f]{{7,40}}|unknown)(-dirty)?)?", code_version()
    )

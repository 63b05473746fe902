"""What imports Avalanche and what does not, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fedcondense.avalanche


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_toolkit_and_its_room_imports_no_avalanche() -> None:
    code = """
import sys
import fedcondense, fedcondense.avalanche
from fedcondense.memory import Condenser, Memory, Selector
print([name for name in sys.modules if name.partition(".")[0] in ("avalanche", "torchmetrics", "wandb")])
"""
    assert run(code).strip() == "[]"


def test_without_avalanche_each_name_says_how_to_install_it() -> None:
    code = """
import sys
sys.modules["avalanche"] = None  # an import of it fails, as where it is not installed
import fedcondense.avalanche
from fedcondense.errors import FedcondenseError, MissingExtraError
for name in fedcondense.avalanche.__all__:
    try:
        getattr(fedcondense.avalanche, name)
    except MissingExtraError as error:
        assert isinstance(error, ImportError) and isinstance(error, FedcondenseError)
        print(error)
try:
    from fedcondense.avalanche import CondensedBuffer
except ImportError as error:
    print(error)
"""
    said = run(code).splitlines()
    assert len(said) == len(fedcondense.avalanche.__all__) + 1
    assert set(said) == {"avalanche-lib is not installed; run: pip install 'fedcondense[avalanche]'"}


@pytest.mark.parametrize("name", fedcondense.avalanche.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(fedcondense.avalanche, name).__name__ == name
    assert getattr(fedcondense.avalanche, name).__doc__


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match=r"'fedcondense\.avalanche' has no attribute 'Buffer'"):
        _ = fedcondense.avalanche.Buffer

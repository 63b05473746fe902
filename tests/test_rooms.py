"""The rooms of the package: what each gives, and that each can be entered first."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import fedcondense

LAZY = {"avalanche", "flower"}  # their extras may be missing, and take seconds
ROOMS = sorted({room.name for room in pkgutil.iter_modules(fedcondense.__path__) if room.ispkg} - LAZY)


@pytest.mark.parametrize("name", ROOMS)
class TestEveryRoom:
    def test_gives_what_it_lists(self, name: str) -> None:
        room = importlib.import_module(f"fedcondense.{name}")
        assert list(room.__all__) == sorted(
            set(room.__all__), key=lambda one: (not one.isupper(), one[0].islower(), one)
        )
        assert all(hasattr(room, one) for one in room.__all__)

    def test_gives_nothing_under_the_name_of_one_of_its_modules(self, name: str) -> None:
        """Whoever imports that module would replace it."""
        room = importlib.import_module(f"fedcondense.{name}")
        assert not {one.name for one in pkgutil.iter_modules(room.__path__)} & set(room.__all__)

    def test_says_in_a_sentence_or_two_what_it_is(self, name: str) -> None:
        first = (importlib.import_module(f"fedcondense.{name}").__doc__ or "").partition("\n\n")[0]
        assert first.endswith(".")
        assert first.count(". ") < 2


def test_any_room_can_be_the_first_that_is_imported() -> None:
    """One process: modules are forgotten in between, so that a circle would show."""
    code = (
        "import importlib, sys\n"
        f"for room in {ROOMS}:\n"
        "    importlib.import_module(f'fedcondense.{room}')\n"
        "    for name in [one for one in sys.modules if one.partition('.')[0] == 'fedcondense']:\n"
        "        del sys.modules[name]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

"""The federation as it was before the house was rebuilt: `experiments/unchanged.py` compared the two bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fedcondense as fc
from fedcondense.flower import Condense, FederationResult, Measured, federate

KEPT = json.loads((Path(__file__).parents[3] / "experiments" / "results" / "unchanged.json").read_text())
ROWS = ("one-shot", "random-real", "ridge", "feature-statistics")


@pytest.fixture(scope="module")
def result() -> FederationResult:
    train, test = fc.load_data("digits")
    held = fc.partition(train, 5, "dirichlet", alpha=0.3, seed=0)
    asked = Condense(ipc=2, steps=60)
    return federate(train, test, held, asked=asked, rows=ROWS, measured=Measured(seeds=(0, 1)), min_records=1)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_what_it_was(name: str, result: FederationResult) -> None:
    """Another kind of processor may round differently: an accuracy moves by a few of 364 test images then."""
    old: dict[str, Any] = KEPT["old"]["rows"][name]
    assert result.rows[name]["accuracy"] == pytest.approx(old["accuracy"], abs=1.5)
    assert result.rows[name].get("images") == old["images"]


@pytest.mark.parametrize("name", ROWS)
def test_messages_cost_what_was_stated(name: str, result: FederationResult) -> None:
    up, down = KEPT["new"]["bytes"][name]
    assert result.rows[name]["bytes_up"] == pytest.approx(up, abs=16)  # the digits of what a set's record holds
    assert result.rows[name]["bytes_down"] == pytest.approx(down, abs=16)


def test_the_two_were_equal_bit_by_bit_where_they_were_compared() -> None:
    old, new = KEPT["old"], KEPT["new"]
    assert (old["rows"], old["sets"], old["weights"]) == (new["rows"], new["sets"], new["weights"])

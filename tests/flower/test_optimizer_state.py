from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideAdaptiveClipping, FedAdam, FedAvg, FedAvgM

from fedcondense.errors import ResumeError
from fedcondense.flower.contract import State
from fedcondense.flower.optimizer_state import held, hold
from fedcondense.flower.state_file import dump_state, load_state


class Everything(FedAvg):
    """Keeps one of each kind."""

    def __init__(self, *, eta: float = 1.0, own: float = 2.0) -> None:
        super().__init__()
        self.eta = eta
        self.state: dict[str, Any] | None = None
        self.moments: Any = None
        self.pair: Any = None
        self.last: ArrayRecord | None = None
        self.mean: Any = None
        self.steps, self.rate, self.is_warm, self.model = 0, own, False, b""


def filled() -> Everything:
    """Return one whose keys stand in no alphabetical order."""
    strategy = Everything()
    strategy.state = {"b:1>2": np.arange(3.0), "a": np.float32(0.5) * np.ones(())}
    strategy.moments = [np.zeros((2, 1), np.float32), np.array(3, np.int64)]
    strategy.pair = (torch.ones(2), torch.zeros(1, dtype=torch.float64))
    strategy.last = ArrayRecord({"z": Array(np.ones(2)), "y": Array(np.zeros(1, np.float32))})
    strategy.mean = np.float64(0.1)
    strategy.steps, strategy.rate, strategy.is_warm, strategy.model = 7, 0.1, True, b"\0tree"
    return strategy


def through_a_file(tensors: dict[str, Any]) -> Any:
    return load_state(dump_state(State(1, tensors=tensors)), "here").tensors


def test_what_a_strategy_keeps_comes_back_in_kind_order_and_dtype() -> None:
    before, again = filled(), Everything()
    hold(again, through_a_file(held(before)))
    assert again.state is not None
    assert before.state is not None
    assert list(again.state) == ["b:1>2", "a"]
    pairs = [*((again.state[name], value) for name, value in before.state.items()), (again.mean, before.mean)]
    pairs += zip(again.moments, before.moments, strict=True)
    for mine, other in pairs:
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)
    assert isinstance(again.moments, list)
    assert isinstance(again.pair, tuple)
    assert [value.dtype for value in again.pair] == [torch.float32, torch.float64]
    assert again.last == before.last
    assert list(again.last or ()) == ["z", "y"]
    assert (again.steps, again.rate, again.is_warm, again.model) == (7, 0.1, True, b"\0tree")


def test_settings_are_no_state() -> None:
    again = Everything(eta=3.0)
    again.min_available_nodes = 9
    hold(again, held(filled()))
    assert again.eta == 3.0
    assert again.min_available_nodes == 9


def test_a_strategy_that_has_seen_no_round_keeps_no_arrays() -> None:
    assert held(FedAdam()) == held(FedAvg()) == {}
    assert list(held(FedAvgM(server_momentum=0.9))) == ["server_opt:value:number"]


def test_a_strategy_within_a_strategy_is_looked_into() -> None:
    """The norm that adaptive clipping has come to is called `initial_clipping_norm` where it is given."""

    def wrapped() -> tuple[FedAdam, DifferentialPrivacyServerSideAdaptiveClipping]:
        inner = FedAdam()
        return inner, DifferentialPrivacyServerSideAdaptiveClipping(inner, 0.1, 50)

    (inner, outer), (again, around) = wrapped(), wrapped()
    inner.m_t, outer.clipping_norm = {"w": np.ones(2)}, 0.25
    hold(around, through_a_file(held(outer)))
    assert around.clipping_norm == 0.25
    assert around.strategy is again
    assert again.m_t is not None
    np.testing.assert_array_equal(again.m_t["w"], np.ones(2))


def test_what_cannot_be_kept_is_left_as_it_is() -> None:
    odd = Everything()
    odd.state, odd.moments = {"a": object()}, [np.ones(1), None]
    assert not any(name.startswith(("state", "moments")) for name in held(odd))


@pytest.mark.parametrize("name", ["m_t", "m_t:dict", "other>m_t:value:number"])
def test_a_name_of_something_else_is_refused(name: str) -> None:
    with pytest.raises(ResumeError, match=r"no state of a Flower strategy|is no strategy"):
        hold(FedAdam(), {name: torch.zeros(())})

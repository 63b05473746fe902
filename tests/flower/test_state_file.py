from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcondense.checksums import PLACE, dump_json, dump_tensors, seal
from fedcondense.data.images import Data
from fedcondense.errors import ResumeError
from fedcondense.flower.contract import State
from fedcondense.flower.payloads import Weights
from fedcondense.flower.state_file import dump_state, load_state
from fedcondense.sets.selection import select


@pytest.fixture(scope="module")
def state(train: Data) -> State:
    sets = {"client-9": select(train, 1, "random", seed=1), "client-10": select(train, 1, "half-resolution", seed=0)}
    weights = Weights({"w": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)})
    tensors = {"head/0": torch.ones(2, dtype=torch.float16), "codes": torch.tensor([-1], dtype=torch.int8)}
    return State(3, weights, sets, tensors, {"bytes-up": 1.5, "keys": 3, "said": "ü"}, {"00ff": "client-9", "7": ""})


def test_a_state_comes_back_with_its_names_in_their_order(state: State) -> None:
    again = load_state(dump_state(state), "here")
    assert (again.round, again.numbers, list(again.sets)) == (3, state.numbers, ["client-9", "client-10"])
    assert again.sites == state.sites
    assert {name: type(value) for name, value in again.numbers.items()} == {"bytes-up": float, "keys": int, "said": str}
    for name, synthetic in state.sets.items():
        assert again.sets[name].to_bytes() == synthetic.to_bytes()
    assert again.weights is not None
    assert state.weights is not None
    for mine, other in ((again.weights.tensors, state.weights.tensors), (again.tensors, state.tensors)):
        assert set(mine) == set(other)
        for name, value in other.items():
            torch.testing.assert_close(mine[name], value, rtol=0, atol=0)
    assert again.joined is not None
    assert state.joined is not None
    assert again.joined.to_bytes() == state.joined.to_bytes()


def test_an_empty_state_and_empty_weights_are_two_things() -> None:
    assert load_state(dump_state(State()), "here") == State()
    weights = load_state(dump_state(State(weights=Weights({}))), "here").weights
    assert weights is not None
    assert weights.tensors == {}


def test_equal_states_are_equal_bytes(state: State) -> None:
    assert dump_state(state) == dump_state(state.but())
    assert dump_state(load_state(dump_state(state), "here")) == dump_state(state)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_every_byte_counts(state: State, place: int, change: int) -> None:
    blob = bytearray(dump_state(state))
    blob[place % len(blob)] ^= change
    with pytest.raises(ResumeError, match=r"here is damaged; delete it, and the run goes on from the round before"):
        load_state(bytes(blob), "here")


@pytest.mark.parametrize("length", [0, 31, 32, 40, -1])
def test_what_was_cut_is_refused(state: State, length: int) -> None:
    with pytest.raises(ResumeError):
        load_state(dump_state(state)[:length], "here")


@pytest.mark.parametrize(
    "blob",
    [
        dump_json({}),
        seal(PLACE.encode()),
        dump_tensors({"a": torch.ones(1)}, "checkpoint", {}),
        dump_tensors({}, "state", {"format": 2}),
        dump_tensors({}, "state", {}),
    ],
)
def test_a_sound_file_of_something_else_is_refused(blob: bytes) -> None:
    with pytest.raises(ResumeError, match="here holds no state of a run"):
        load_state(blob, "here")


def test_another_format_is_named() -> None:
    with pytest.raises(ResumeError, match="here is of format 3; this version reads 2"):
        load_state(dump_tensors({}, "state", {"format": 3}), "here")

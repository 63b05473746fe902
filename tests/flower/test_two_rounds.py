from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedcondense.flower.two_rounds import TwoRounds


class Memory(dict[str, bytes]):
    """A node's, without bounds."""

    def put(self, name: str, blob: bytes) -> None:
        self[name] = blob


def asked(memory: Memory, number: int) -> bytes | None:
    """Let a node answer a round: return what it found, and keep this round's name."""
    last = TwoRounds(memory, "set.7", number)
    found = last.before()
    last.keep(f"of round {number}".encode())
    return found


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=8))
def test_a_round_finds_the_one_before_it_however_often_it_is_asked(steps: list[tuple[int, int]]) -> None:
    """A site is absent from some rounds, and asked others up to three times."""
    memory, number, before = Memory(), 0, None
    for absent, times in steps:
        number += absent
        assert [asked(memory, number) for _ in range(times)] == [before] * times
        before = f"of round {number}".encode()
    assert len(memory) <= 2


def test_another_run_finds_nothing_and_a_node_without_a_place_goes_on_without() -> None:
    memory = Memory()
    asked(memory, 1)
    assert TwoRounds(memory, "set.8", 2).before() is None
    nowhere = TwoRounds(None, "set.7", 2)
    nowhere.keep(b"lost")
    assert nowhere.before() is None

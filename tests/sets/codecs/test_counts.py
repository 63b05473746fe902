"""The entropy coder of whole numbers in rows: a round trip, its length, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcondense.sets.codecs import counts

KINDS = 2


def by_parity(symbols: NDArray[np.uint8], column: int) -> NDArray[np.int64]:
    """Take the table that the column before names."""
    before = symbols[column - 1] if column else np.zeros(symbols.shape[1], np.uint8)
    return (before % 2).astype(np.int64)


def before(columns: int) -> list[list[int]]:
    return [[k - 1] if k else [] for k in range(columns)]


def drawn(columns: int, rows: int, seed: int = 0) -> NDArray[np.uint8]:
    falling = 0.5 ** np.arange(1, counts.SYMBOLS + 1)
    chances = falling / falling.sum()
    return np.random.default_rng(seed).choice(counts.SYMBOLS, (columns, rows), p=chances).astype(np.uint8)


@pytest.mark.parametrize(("columns", "rows", "lanes"), [(1, 1, 1), (5, 7, 3), (30, 100, 10), (3, 10, 16), (0, 4, 2)])
def test_symbols_come_back(columns: int, rows: int, lanes: int) -> None:
    symbols = drawn(columns, rows)
    data = counts.encode(symbols, before(columns), by_parity, KINDS, lanes)
    found = counts.decode(data, (columns, rows), before(columns), by_parity, KINDS, lanes)
    assert np.array_equal(found, symbols)


def test_every_symbol_can_follow_any_number_of_others() -> None:
    symbols = np.zeros((40, 200), np.uint8)
    symbols[-1, -1] = counts.SYMBOLS - 1
    data = counts.encode(symbols, before(40), by_parity, KINDS, 20)
    assert np.array_equal(counts.decode(data, (40, 200), before(40), by_parity, KINDS, 20), symbols)
    assert len(data) < 4 * 20 + 60  # 7,999 zeros and one 15


def test_length_is_the_entropy_and_a_little() -> None:
    """Symbols of halving chances have 2 bits each; the states take two bytes a lane that hold nothing."""
    symbols = drawn(50, 2000)
    size = len(counts.encode(symbols, before(50), by_parity, KINDS, 50))
    assert 0.99 * symbols.size * 2 / 8 < size < 1.02 * symbols.size * 2 / 8 + 2 * 50


def test_contexts_are_used() -> None:
    """A row whose numbers are all odd or all even costs one bit less a number than its table alone would."""
    values = drawn(50, 500)
    values[1:] = values[1:] // 2 * 2 + values[0] % 2
    informed = len(counts.encode(values, before(50), by_parity, KINDS, 50))
    blind = len(counts.encode(values, before(50), lambda s, c: np.zeros(s.shape[1], np.int64), 1, 50))
    assert informed < 0.8 * blind


@pytest.mark.parametrize("change", [lambda d: d[:-2], lambda d: d + b"ab", lambda d: d[:3], lambda d: d[:-1]])
def test_other_lengths_are_refused(change: object) -> None:
    data = counts.encode(drawn(5, 40), before(5), by_parity, KINDS, 4)
    with pytest.raises(ValueError, match="coded numbers"):
        counts.decode(change(data), (5, 40), before(5), by_parity, KINDS, 4)  # type: ignore[operator]

"""An adaptive entropy coder for small whole numbers in many rows, which numpy runs through a column at a time.

Asymmetric numeral systems (Duda, 2013, https://arxiv.org/abs/1311.2540), many interleaved states: what a state reads is
counted by all, so that tables are learned on the way and none is stored.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["SYMBOLS", "Tables", "decode", "encode"]

SYMBOLS = 16
_BITS = 12  # of a probability
_LOW = 1 << 16  # a state's least value between two symbols; it gives and takes 16 bits
_SEEN = 32  # what a symbol that occurred adds to its count
_MEMORY = 40 * _SEEN  # how much of what neighbours counted is believed

_ONE_EACH = np.arange(1, SYMBOLS + 1)

Ints = NDArray[np.int64]
Symbols = NDArray[np.uint8]
Contexts = Callable[[Symbols, int], Ints]
"""Takes what is known, (P, N), and a column's number; returns (N,), which table serves each row."""


class Tables:
    """Counts of symbols in each context, for each column; a column begins with what its forerunners counted.

    Args:
        contexts: How many.
        columns: How many.
    """

    def __init__(self, contexts: int, columns: int) -> None:
        falling = _SEEN * 8 // 2 ** np.minimum(np.arange(SYMBOLS), 8)
        self.counts = np.tile(falling.astype(np.int64), (columns, contexts, 1))
        self.counts += 1

    def begin(self, column: int, forerunners: list[int]) -> None:
        """Start a column."""
        if forerunners:
            mean = sum(self.counts[k] for k in forerunners) // len(forerunners)
            total = np.maximum(mean.sum(1, keepdims=True), _MEMORY)
            self.counts[column] = mean * _MEMORY // total + 1

    def cumulated(self, column: int) -> Ints:
        """Return (contexts, SYMBOLS + 1): where each symbol's share of 2**12 begins; each has at least one."""
        until = self.counts[column].cumsum(1)
        ends = np.zeros((len(until), SYMBOLS + 1), np.int64)
        ends[:, 1:] = until * ((1 << _BITS) - SYMBOLS) // until[:, -1:] + _ONE_EACH
        return ends

    def learn(self, column: int, contexts: Ints, symbols: Ints | Symbols) -> None:
        """Count what was seen."""
        seen = np.bincount(contexts * SYMBOLS + symbols, minlength=self.counts[column].size)
        self.counts[column] += _SEEN * seen.reshape(self.counts[column].shape)


def encode(symbols: Symbols, forerunners: list[list[int]], contexts: Contexts, kinds: int, lanes: int) -> bytes:
    """Return symbols (P, N), below 16, as the lanes' last states, four bytes each, and 16-bit words.

    Args:
        symbols: Column after column, P of them, of N rows.
        forerunners: For each column, earlier ones that it is like.
        contexts: What is known of a row before its symbol is.
        kinds: How many contexts there are.
        lanes: States; rows are taken so many at a time.
    """
    tables = Tables(kinds, len(symbols))
    steps = []
    for column, like in enumerate(forerunners):
        tables.begin(column, like)
        context_of = contexts(symbols, column)
        for rows in _blocks(symbols.shape[1], lanes):
            cumulated = tables.cumulated(column)
            context, mine = context_of[rows], symbols[column, rows].astype(np.int64)
            begin = cumulated[context, mine]
            steps.append((begin, cumulated[context, mine + 1] - begin))
            tables.learn(column, context, mine)
    states = np.full(lanes, _LOW, np.int64)
    words = []
    for begin, share in reversed(steps):
        state = states[: len(begin)]
        full = state >= share << (32 - _BITS)
        words.append((state[full] & 0xFFFF).astype("<u2"))
        state = np.where(full, state >> 16, state)
        states[: len(begin)] = (state // share << _BITS) + state % share + begin
    return states.astype("<u4").tobytes() + b"".join(one.tobytes() for one in reversed(words))


def decode(
    data: bytes, shape: tuple[int, int], forerunners: list[list[int]], contexts: Contexts, kinds: int, lanes: int
) -> Symbols:
    """Return what `encode` was given, (P, N).

    Raises:
        ValueError: The data hold more or fewer, or are damaged.
    """
    if len(data) < 4 * lanes or len(data) % 2:
        raise ValueError(f"{len(data)} bytes of coded numbers; needed: an even number from {4 * lanes}")
    states = np.frombuffer(data, "<u4", lanes).astype(np.int64)
    words = np.frombuffer(data, "<u2", offset=4 * lanes).astype(np.int64)
    tables, symbols, at = Tables(kinds, shape[0]), np.zeros(shape, np.uint8), 0
    for column, like in enumerate(forerunners):
        tables.begin(column, like)
        context_of = contexts(symbols, column)
        for rows in _blocks(shape[1], lanes):
            cumulated = tables.cumulated(column)
            context = context_of[rows]
            state = states[: len(context)]
            place = state & ((1 << _BITS) - 1)
            mine = (cumulated[context, 1:] <= place[:, None]).sum(1)
            begin = cumulated[context, mine]
            state = (cumulated[context, mine + 1] - begin) * (state >> _BITS) + place - begin
            low = state < _LOW
            needed = int(low.sum())
            if at + needed > len(words):
                raise ValueError("coded numbers that end too early")
            state[low] = state[low] << 16 | words[at : at + needed]
            at += needed
            states[: len(context)] = state
            symbols[column, rows] = mine
            tables.learn(column, context, mine)
    if at != len(words) or bool((states != _LOW).any()):
        raise ValueError(f"coded numbers that do not end where they should; needed: {shape[1]} rows")
    return symbols


def _blocks(rows: int, lanes: int) -> list[slice]:
    return [slice(k, min(k + lanes, rows)) for k in range(0, rows, lanes)]

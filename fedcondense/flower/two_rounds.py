"""What a node keeps of one round for the next, so that a round that is asked twice is answered twice alike."""

from __future__ import annotations

from fedcondense.flower.contract import Keeper

__all__ = ["TwoRounds"]

_ROUND = 8  # bytes of a round's number


class TwoRounds:
    """The bytes that a node keeps of its last two rounds: a server that was killed may ask the later one again.

    Args:
        kept: Of the node; None: nothing is kept.
        name: Of what is kept, and of the run: another run's is not its own.
        number: The round's, from 1.
    """

    def __init__(self, kept: Keeper | None, name: str, number: int) -> None:
        self._kept, self._number = kept, number
        self._names = [f"{name}.{k}" for k in range(2)]
        self._next = self._names[0]

    def before(self) -> bytes | None:
        """Return what was kept of the latest round before this one; None in the first, or where nothing is."""
        if self._kept is None:
            return None
        found = {name: blob for name in self._names if (blob := self._kept.get(name)) is not None}
        rounds = {name: int.from_bytes(blob[:_ROUND], "little") for name, blob in found.items()}
        earlier = [name for name in rounds if rounds[name] < self._number]
        if not earlier:
            return None
        latest = max(earlier, key=lambda name: rounds[name])
        self._next = self._names[1 - self._names.index(latest)]
        return found[latest][_ROUND:]

    def keep(self, blob: bytes) -> None:
        """Keep this round's, in the place of what `before` did not return."""
        if self._kept is not None:
            self._kept.put(self._next, self._number.to_bytes(_ROUND, "little") + blob)

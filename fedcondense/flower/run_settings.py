"""What a run is known by, when it goes on: its settings, its code and its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedcondense.condensing.meaning import meaning
from fedcondense.data import Data
from fedcondense.flower.strategies import Entry, ServerSide

if TYPE_CHECKING:
    from fedcondense.flower.server import ServerSettings

__all__ = ["code_of", "comparable", "values_of"]

_FREE = {"resume", "output", "wait", "timeout", "grace", "min-replies", "min-available-nodes", "num-rounds"}
_FREE |= {"fraction-evaluate", "min-evaluate-nodes"}


def code_of(settings: ServerSettings, own: Any, entry: Entry, test: Data | None) -> str:
    """Return the identity of a run's code and data: a run goes on with the same alone."""
    return meaning(entry, own, settings.network, None if test is None else (test.spec, test.fingerprint))


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a resumed run must share: whom it waits for, and who evaluates, it may choose anew."""
    return {name: value for name, value in settings.items() if name not in _FREE}


def values_of(side: ServerSide) -> dict[str, Any]:
    """Return a strategy's own settings that are plain values."""
    kinds = (int, float, str, bool, tuple)
    return {name: value for name, value in vars(side.settings).items() if isinstance(value, kinds)}

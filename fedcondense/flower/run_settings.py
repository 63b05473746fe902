"""What a run is made of, and known by when it goes on: its settings, its code and its data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from fedcondense.condensing.meaning import meaning
from fedcondense.data import Data
from fedcondense.data.layouts import first
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.screens import screen_of
from fedcondense.flower.strategies import Entry, ServerSide
from fedcondense.flower.strategies.one_shot import train_network
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import train_on

if TYPE_CHECKING:
    from fedcondense.flower.server import ServerSettings

__all__ = ["code_of", "comparable", "differences", "side_of", "values_of"]

_FREE = {"resume", "output", "wait", "timeout", "grace", "min-replies", "min-available-nodes", "num-rounds"}
_FREE |= {"fraction-evaluate", "min-evaluate-nodes", "log"}


def code_of(settings: ServerSettings, own: Any, entry: Entry, test: Data | None) -> str:
    """Return the identity of a run's code and data: a run goes on with the same alone."""
    return meaning(entry, own, settings.network, None if test is None else (test.spec, test.fingerprint))


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a resumed run must share: whom it waits for, and who evaluates, it may choose anew."""
    return {name: value for name, value in settings.items() if name not in _FREE}


def differences(before: Mapping[str, Any], now: Mapping[str, Any], derived: Collection[str] = ()) -> str:
    """Say which settings of a run are not those of another, and what they are there and here; empty: none.

    Args:
        before: Of the run that a folder holds.
        now: What was asked for.
        derived: Names of what follows from other settings, told only where nothing else differs.
    """
    differ = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    told = [name for name in differ if name not in derived] or differ
    return first(
        [f"{name} ({before.get(name, 'unset')!s:.40} there, {now.get(name, 'unset')!s:.40} now)" for name in told]
    )


def values_of(side: ServerSide) -> dict[str, Any]:
    """Return a strategy's own settings that are plain values."""
    kinds = (int, float, str, bool, tuple)
    return {name: value for name, value in vars(side.settings).items() if isinstance(value, kinds)}


def side_of(settings: ServerSettings, own: Any, test: Data | None) -> ServerSide:
    """Return what a strategy is made of, from a run's settings and what the server tests on."""

    def trained(joined: SyntheticSet) -> Any:
        if test is None:
            return train_network(joined, settings.network, seed=settings.seed)
        return train_on(joined, test, network=settings.network or None, seed=settings.seed)

    spec = None if test is None else test.spec
    limits = ReplyLimits() if spec is None else ReplyLimits.of(spec)
    network, seed, screen, asked = settings.network, settings.seed, screen_of(settings.screens), settings.asked
    if settings.fraction_evaluate < 0:  # without data of its own a server learns from sites alone how good a run is
        asked["fraction_evaluate"] = 0.0 if test is not None else 1.0
    return ServerSide(own, trained, asked, limits, spec, network=network, seed=seed, test=test, screen=screen)

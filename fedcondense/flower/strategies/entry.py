"""What a strategy is called by, says of itself, and is built from: the values of `STRATEGIES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from flwr.serverapp.strategy import Strategy
from torch import nn

from fedcondense.data import Data, Spec
from fedcondense.flower.asking import Asked
from fedcondense.flower.contract import Question, Screen
from fedcondense.flower.replies import ReplyLimits
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.fit import Fit

__all__ = ["Entry", "ServerSide"]


class ServerSide(NamedTuple):
    """What a server hands to an entry's `make`.

    A `make` is ``lambda side: Mine(side.settings, fit=side.fit, limits=side.limits, **side.asked)``; `asked` holds a
    ``seed``, that of the choice of nodes.
    """

    settings: Any  # the entry's own, with what the run's config says
    fit: Callable[[SyntheticSet], nn.Module]  # trains the run's network from scratch; outputs: classes of `spec` if any
    asked: Asked  # who is asked, and how long the server waits, as keyword arguments of a `Rounds`
    limits: ReplyLimits = ReplyLimits()
    spec: Spec | None = None  # of the data that the server tests on; None: it has none
    network: str = ""  # a name in NETWORKS; empty: the one for the images' size
    seed: int = 0
    recipe: Fit = Fit()
    test: Data | None = None  # what the server tests on
    screen: Screen | None = None  # judges sets before they are combined


@dataclass(frozen=True)
class Entry:
    """A strategy that is run by name: in one process, under Ray, by ``flwr run`` or on SuperNodes.

    Args:
        make: Builds any Flower `Strategy` for a server.
        label: What a table calls it.
        travels: What a node sends.
        seen: Who sees what, whatever a run's settings and sites say.
        settings: A frozen dataclass whose fields, in kebab-case, are the strategy's keys of a run's config.
        tasks: What nodes must answer.
        handlers: Flower's own message types that nodes must answer: ``"train"``, ``"evaluate"``.
        rounds: Unless a run says otherwise.
        starts: Whether it needs the weights of a network before its first round, and so a server that knows the data.
        saw: From the strategy, once rounds are done, who has seen what in this run; empty: as `seen` says.
        bits: Of weights that travel: 0 as they are, 8 as `fedcondense.flower.eight_bits` packs them, both ways.
    """

    make: Callable[[ServerSide], Strategy]
    label: str
    travels: str
    seen: str
    settings: Any
    tasks: tuple[type[Question], ...] = ()
    handlers: tuple[str, ...] = ()
    rounds: int = 1
    starts: bool = False
    bits: int = 0
    saw: Callable[[Any], str] = lambda strategy: ""

    def about(self, rounds: int) -> dict[str, Any]:
        """Return what a row says of itself in ``result.json``."""
        more = f", {rounds} round{'s' if rounds > 1 else ''}" if self.starts else ""
        return {"label": self.label + more, "travels": self.travels, "seen": self.seen, "rounds": rounds}

"""All that an author of a strategy reads: what a server asks, what a node does, what comes back, and what is kept.

A strategy is two halves of a paper in one file. The client's half is a `Task`: a frozen dataclass whose fields are the
message, with `prepare`. The server's half is a `Rounds` (`fedcondense.flower.rounds`) with `ask` and `combine`.
Sampling, deadlines, limits, screens, logs and files are written once, elsewhere. Any other Flower `Strategy` works as
well: an `Entry` (`fedcondense.flower.strategies`) names what a node must answer for it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar

from torch import Tensor

from fedcondense.contract import Holder
from fedcondense.data import Data
from fedcondense.flower.caps import Caps, Cost
from fedcondense.flower.payloads import Payload, Weights
from fedcondense.randomness import child_seed
from fedcondense.sets.synthetic import SyntheticSet

__all__ = [
    "Answer",
    "Cost",
    "Job",
    "Keeper",
    "Known",
    "Node",
    "Question",
    "Screen",
    "Site",
    "State",
    "Store",
    "Task",
    "Verdict",
]

P = TypeVar("P", bound=Payload)


class Job(NamedTuple, Generic[P]):
    """Work that is prepared: what it costs, and how it is done."""

    cost: Cost
    run: Callable[[], P]  # keeps to `Node.until`: then it answers with what is sound so far, or raises SettingError


class Keeper(Protocol):
    """What a node keeps between messages, bounded and checked: a node process may serve one message only."""

    def get(self, name: str) -> bytes | None:
        """Return what was put under a name, or None: it never was, is damaged, or had to make room."""

    def put(self, name: str, blob: bytes) -> None:
        """Keep bytes under a name (letters, digits, ``-_.``)."""


@dataclass(frozen=True, order=True)
class Site:
    """Who answers: one node of a run.

    Args:
        name: For people and files: the name it is registered by, else what it calls itself; unique in a run. Empty in
            `Rounds.ask` for a site that is not registered by a name and has not answered yet: match sites by `key`.
        key: Its public key in hexadecimal where nodes authenticate, else its node id: what a server may rely on.
        node: Flower's node id, of this run alone.
    """

    name: str
    key: str = ""
    node: int = 0


class Node(NamedTuple):
    """What a node hands to a task beside its data."""

    name: str
    caps: Caps = Caps()
    until: float = float("inf")  # a moment of `time.monotonic`, at which work ends
    kept: Keeper | None = None
    progress: Callable[[Any], None] | None = None
    place: int = 0  # this node's own number, from which its seeds follow: `partition-id`, else its node id
    checkpoint: Any = None  # a `fedcondense.Checkpoint` of this very question, or None
    takes: Callable[[Payload], int] = lambda payload: len(payload.to_bytes())  # bytes of an answer, as it is sent
    apart: Data | None = None  # records that no question sees but one that evaluates

    def seed(self, root: int, *purpose: str | int) -> int:
        """Return this node's own seed for a purpose: nodes that start alike would send the same images.

        The same root in two rounds gives the same seed twice: let a task's seed change with the round.
        """
        return child_seed(root, "client", self.place, *purpose)


class Task(Protocol[P]):
    """What a server asks of a node; derive a frozen dataclass, whose fields travel as they are.

    Fields are numbers, texts, booleans, tuples of those, `Weights` or a `SyntheticSet`; bounds are declared by
    `fedcondense.flower.settings.number`, as ``ipc: int = number(10, 1)``, and are checked at both ends. A node looks
    `name` up in its own `TASKS` and never imports anything that a message names.
    """

    name: ClassVar[str]  # an identifier; the message type is query.NAME
    payload: ClassVar[type[Payload]]  # what comes back
    leaves: ClassVar[str] = ""  # what that is made of, in words for the people whose records they are
    evaluates: ClassVar[bool] = False  # whether it is about `Node.apart`: weights may come for it by ``allow-evaluate``

    @abstractmethod
    def prepare(self, holder: Holder, node: Node) -> Job[P]:
        """Return the work, ready to run: nothing of the records has been sent, and the cost is known.

        Args:
            holder: The node's records, without classes that have too few; ``holder.data`` are the tensors, or None
                where records may not be seen. `Data` is accepted where a holder is, such as a subset of these.
            node: Caps, time, what the node kept, and its seeds.

        Raises:
            SettingError: The task cannot be done here (`fedcondense.errors`); the message travels to the server.
        """


Question = Task[Any]


class Answer(NamedTuple, Generic[P]):
    """A usable answer, checked."""

    site: Site
    payload: P
    num_examples: int = 0  # real records, as the site says
    seconds: float = 0.0  # of its work, as the site says
    nbytes: int = 0  # of the whole message, counted at the server
    shares: bool = False  # whether the site lets its set go to other sites
    broken: int = 0  # image files that the site could not read, as it says


class Verdict(NamedTuple):
    """How much a site's images of a class count."""

    weight: float  # 1: all of them; 0: left out; between: so large a share of them
    why: str = ""  # for the log and the report; "not enough others" is an answer


class Known(NamedTuple):
    """What a server knows beside the answers."""

    classes: tuple[str, ...] | None = None  # that may occur; None: any
    round: int = 1
    seed: int = 0


Screen = Callable[[Sequence[Answer[SyntheticSet]], Known], Mapping[tuple[Site, str], Verdict]]
"""Judges sets per site and class name; a pair that it does not name counts fully."""


class Store(Protocol):
    """Which rounds' and sites' sets are trained on; a value without a state of its own."""

    def take(
        self, server_round: int, answers: Sequence[Answer[SyntheticSet]], kept: Mapping[str, SyntheticSet]
    ) -> dict[str, SyntheticSet]:
        """Return what is kept from now on, by names of the store's own; the union of all is trained on."""


@dataclass(frozen=True)
class State:
    """All that a strategy keeps between rounds; a run's folder holds it after each.

    A strategy goes on from it: ``strategy.state = RunFolder(path).read_state()`` before `Rounds.start`. The library
    fills in `round`, `sites`, what was spent and how good sites are alone; `combine` returns the others.

    Args:
        round: The last round that is finished.
        weights: Of the global network.
        sets: By names of the strategy's own.
        tensors: Likewise.
        numbers: Numbers and texts; names that begin with ``spent/`` or ``site/`` are the library's.
        sites: Everybody who was asked so far: names by `Site.key`, empty where a site has not said its own yet.
    """

    round: int = 0
    weights: Weights | None = None
    sets: Mapping[str, SyntheticSet] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)
    sites: Mapping[str, str] = field(default_factory=dict)

    @property
    def joined(self) -> SyntheticSet | None:
        """The union of the sets that are kept, in the order of their names' appearance."""
        return SyntheticSet.join(self.sets.values()) if self.sets else None

    def but(self, **changes: Any) -> Self:
        """Return the same state with some fields replaced."""
        return replace(self, **changes)

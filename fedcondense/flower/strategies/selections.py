"""Real images as a control: each site sends some of its records, in the bytes that its synthetic set would take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcondense.contract import Holder
from fedcondense.errors import SettingError, look_up
from fedcondense.flower.contract import Job, Node, Task
from fedcondense.flower.settings import number
from fedcondense.flower.strategies.entry import Entry, ServerSide
from fedcondense.flower.strategies.in_bytes import InBytes
from fedcondense.flower.strategies.one_shot import OneShot, cost_of
from fedcondense.sets.selection import SELECTIONS, select_quietly
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["Select", "selection"]


@dataclass(frozen=True)
class Select(InBytes, Task[SyntheticSet]):
    """Select records of a site, which publishes them: a node refuses unless its config has ``allow-real = true``.

    Args:
        ipc: Images per class whose bytes a class's images take; at most one for each ``min-records`` of its records.
        method: A name in the node's `SELECTIONS`.
        seed: The root seed; each node draws from a child of it.
        budget: As in `InBytes`; `ipc` plays no part then.
        codec: As in `InBytes`.
        codecs: As in `InBytes`.
    """

    ipc: int = number(10, 1)
    method: str = "random"
    seed: int = number(0, 0)

    name: ClassVar[str] = "select"
    payload: ClassVar[type[SyntheticSet]] = SyntheticSet

    def prepare(self, holder: Holder, node: Node) -> Job[SyntheticSet]:
        """Select at once, which takes less than a second, and let the node look at what it would send."""
        node.caps.check_ipc(self.ipc)
        look_up("method", self.method, SELECTIONS)
        if not node.caps.allow_real:
            raise SettingError(
                f"method {self.method!r} publishes real records; this node's config has no allow-real = true"
            )
        if holder.data is None:
            raise SettingError(f"method {self.method!r} takes records, which this node's holder does not hand out")
        chosen = select_quietly(holder.data, self.ipc, self.method, seed=node.seed(self.seed), limit=node.caps.share)
        chosen = chosen.recode(self.checked_codec())
        return Job(cost_of(chosen, is_real=True), lambda: chosen)


def selection(method: str, label: str, travels: str = "real images") -> Entry:
    """Return the entry of a method in `SELECTIONS`."""

    def make(side: ServerSide) -> OneShot:
        return OneShot(side.fit, side.limits, task=side.settings, screen=side.screen, **side.asked)

    return Entry(
        make,
        label=label,
        travels=travels,
        seen="the server sees records of each site",
        settings=Select(method=method),
        tasks=(Select,),
    )

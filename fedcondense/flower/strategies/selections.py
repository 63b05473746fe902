"""Real images as a control: each site sends some of its records, in the bytes that its synthetic set would take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from fedcondense.contract import Holder
from fedcondense.errors import SettingError, look_up
from fedcondense.flower.contract import Job, Node, Task
from fedcondense.flower.settings import number
from fedcondense.flower.strategies.entry import Entry, ServerSide
from fedcondense.flower.strategies.in_bytes import InBytes
from fedcondense.flower.strategies.one_shot import OneShot, cost_of
from fedcondense.sets.codecs import RAW
from fedcondense.sets.fitting import Within, fit_within
from fedcondense.sets.selection import SELECTIONS, select_quietly
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["REAL_CODECS", "Select", "selection"]

REAL_CODECS = {"grey": "webp-20", "colour": "jpeg-10"}
"""What real images are stored in under a budget, unless a codec is named: what was best for 78 kB of one holder on
held-out training images of Fashion-MNIST and CIFAR-10 (`experiments/coded.py`)."""


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
    leaves: ClassVar[str] = "real images: records themselves"
    payload: ClassVar[type[SyntheticSet]] = SyntheticSet

    def prepare(self, holder: Holder, node: Node) -> Job[SyntheticSet]:
        """Select at once, which takes less than a second, and let the node look at what it would send."""
        codec = self.checked_codec()
        if not self.budget:
            node.caps.check_ipc(self.ipc)
        look_up("method", self.method, SELECTIONS)
        if not node.caps.allow_real:
            raise SettingError(
                f"method {self.method!r} publishes real records; this node's config has no allow-real = true"
            )
        if holder.data is None:
            raise SettingError(f"method {self.method!r} takes records, which this node's holder does not hand out")
        data = holder.data
        choose = partial(select_quietly, data, method=self.method, seed=node.seed(self.seed), limit=node.caps.share)
        if not self.budget:
            chosen = choose(self.ipc).recode(codec)
        else:
            usual = REAL_CODECS["grey" if data.spec.shape[0] == 1 else "colour"]
            chosen = self.checked(_largest(choose, self.within(holder, node, usual), int(data.counts.max())), node)
        return Job(cost_of(chosen, is_real=True), lambda: chosen)


def _largest(choose: Callable[[int], SyntheticSet], within: Within, most: int) -> SyntheticSet:
    """Return the selection of the most images that fits: by bisection, then the last image of some classes goes."""
    codec, most = within.codec or RAW, min(most, within.ipc or most)
    fits, beyond = 0, 1
    while beyond <= most and choose(beyond).recode(codec).nbytes <= within.most:
        fits, beyond = beyond, 2 * beyond
    beyond = min(beyond, most + 1)
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        fits, beyond = (middle, beyond) if choose(middle).recode(codec).nbytes <= within.most else (fits, middle)
    return fit_within(choose(min(fits + 1, most)), within, codec)


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

"""What a site is asked in a stream: a set of some of its classes, of which a part may be coded real images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch

from fedcondense.condensing import Own
from fedcondense.contract import Holder
from fedcondense.errors import SettingError
from fedcondense.flower.contract import Job, Node
from fedcondense.flower.payloads import Payload
from fedcondense.flower.settings import number
from fedcondense.flower.strategies.one_shot import Condense
from fedcondense.flower.strategies.selections import Select
from fedcondense.flower.untrusted import some_names
from fedcondense.flower.wire import NO_DATA
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["CondenseClasses", "restricted"]


@dataclass(frozen=True)
class CondenseClasses(Condense):
    """Condense the records of some classes of a site.

    Args:
        ipc: As in `Condense`, as are all of these but the last three.
        objective: Likewise.
        parametrization: Likewise.
        steps: Likewise.
        seed: Likewise.
        network: Likewise.
        start: Likewise.
        budget: Likewise.
        codec: Of the condensed images.
        codecs: Those that the server reads.
        classes: Names of the classes that are asked for; empty: all that the site holds at present.
        real_fraction: Share of the budget for real images, random ones, coded: 1 for these alone. They publish
            records: a node refuses unless its config has ``allow-real = true``.
        real_codec: What real images are stored in; empty: as `Select` does.
        in_union: Count the budget as what a set adds to a union's file, instead of what the reply takes.
    """

    classes: tuple[str, ...] = ()
    real_fraction: float = number(0.0, 0, 1)
    real_codec: str = ""
    in_union: bool = False

    name: ClassVar[str] = "condense_classes"
    leaves: ClassVar[str] = (
        "synthetic images condensed from the records of the classes asked for; real ones too if asked for and allowed"
    )

    def prepare(self, holder: Holder, node: Node) -> Job[SyntheticSet]:
        """Choose the real images first, which takes no time, and condense to the bytes that they leave."""
        held = restricted(holder, self.classes, node)
        if self.in_union:
            node = node._replace(takes=_added)
        if not self.real_fraction:
            return super().prepare(held, node)
        if not self.budget:
            raise SettingError(f"real-fraction {self.real_fraction} of no budget; give one in bytes: budget = 4000")
        share = int(self.real_fraction * self.budget)
        select = Select(seed=self.seed, budget=share, codec=self.real_codec, codecs=self.codecs)
        if self.real_fraction == 1:
            return select.prepare(held, node)
        caps = replace(node.caps, min_records=2 * node.caps.min_records, max_ipc=max(1, node.caps.max_ipc // 2))
        half = node._replace(caps=caps)  # both kinds together keep to the node's
        counts = zip(held.spec.classes, held.counts.tolist(), strict=True)
        large = tuple(name for name, count in counts if count >= caps.min_records)
        if not large:
            return super().prepare(held, node)
        chosen = select.prepare(restricted(held, large, node), half)
        real = chosen.run()
        beside = half._replace(takes=lambda made: node.takes(SyntheticSet.join([real, cast(SyntheticSet, made)])))
        condensed = super().prepare(held, beside)
        cost = condensed.cost.but(
            images=dict(Counter(chosen.cost.images) + Counter(condensed.cost.images)),
            decoded=dict(Counter(chosen.cost.decoded) + Counter(condensed.cost.decoded)),
            pixels=chosen.cost.pixels + condensed.cost.pixels,
            is_real=True,
        )
        return Job(cost, lambda: SyntheticSet.join([real, condensed.run()]))


def _added(made: Payload) -> int:
    """Return by how many bytes a set makes the file of a union longer: names of classes stand there once."""
    assert isinstance(made, SyntheticSet)
    return SyntheticSet.join([made, made]).nbytes - made.nbytes


def restricted(holder: Holder, names: Sequence[str], node: Node) -> Holder:
    """Return the owner of those records that are of some classes.

    Raises:
        SettingError: There are none, or the holder hands out sums alone.
    """
    if not names:
        return holder
    if holder.data is None:
        raise SettingError("classes of a stream are chosen among records, which this node's holder does not hand out")
    places = [c for c, name in enumerate(holder.spec.classes) if name in set(names)]
    data = holder.data
    data = data.subset(torch.isin(data.labels, torch.tensor(places, dtype=torch.int64, device=data.device)))
    if not len(data):
        raise SettingError(f"of the classes of this task, {some_names(names)}, {node.name} {NO_DATA}")
    return Own(data)

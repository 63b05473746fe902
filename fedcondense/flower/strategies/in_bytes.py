"""What a server asks for in bytes: a codec, a budget, and the codecs that it reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from fedcondense.contract import Holder
from fedcondense.errors import SettingError
from fedcondense.flower.contract import Node
from fedcondense.flower.settings import later
from fedcondense.networks import default_network
from fedcondense.parametrizations import Pixels
from fedcondense.sets.codecs import CODECS, RAW, codec_named
from fedcondense.sets.fitting import Within
from fedcondense.sets.synthetic import Part, Record, SyntheticSet

__all__ = ["InBytes", "asked_in_bytes", "family_of"]

_SPARE = 32  # bytes by which a header of today may be longer than a blank set's


@dataclass(frozen=True, kw_only=True)
class InBytes:
    """Fields of a task that is answered with a set; nodes of before know none of them, and answer raw.

    Args:
        budget: Bytes that the reply may take, as Flower sends it; each node chooses images and bits by its own counts.
            0: as many images as `ipc` says.
        codec: How images are stored, by name; empty: raw, and under a budget as the node finds best.
        codecs: The families of codecs that the server reads, ``"bits"`` say; empty: raw sets alone.
    """

    budget: int = later(0, 0)
    codec: str = later("")
    codecs: tuple[str, ...] = later(())

    def checked_codec(self) -> str:
        """Return the name of the codec that is asked for; raw if none is.

        Raises:
            SettingError: No codec has that name, or the server does not read it.
        """
        if not self.codec:
            return RAW
        codec_named(self.codec)
        if family_of(self.codec) not in (RAW, *self.codecs):
            reads = ", ".join((RAW, *self.codecs))
            raise SettingError(
                f"codec {self.codec!r} is asked for by a server that reads {reads}; needed: one of these, or codecs = "
                "what it reads"
            )
        return self.codec

    def within(self, holder: Holder, node: Node, usual: str = "") -> Within:
        """Return what a set's file may take so that the reply with it keeps to the budget.

        Args:
            holder: The node's records.
            node: The node, which knows what its replies take.
            usual: A codec to be taken where the question names none and the server reads it; empty: the rate rule's.

        Raises:
            SettingError: The codec cannot be, or the budget is below what a reply takes without any image.
        """
        codec = self.checked_codec() if self.codec else usual
        if not self.codec and family_of(codec or "bits") not in self.codecs:
            codec = RAW
        blanks = [blank.recode(codec or "bits-2") for blank in _blanks(holder, node)]
        # below zero where headers are packed
        beside = _SPARE + max(node.takes(blank) - blank.nbytes for blank in blanks)
        if self.budget <= beside:
            raise SettingError(f"budget {self.budget} bytes; a reply takes {beside} bytes without a set: ask for more")
        return Within(self.budget - beside, codec or None, seeds=0, ipc=node.caps.max_ipc)

    def checked(self, made: SyntheticSet, node: Node) -> SyntheticSet:
        """Return a set whose reply keeps to the budget.

        Raises:
            SettingError: It does not.
        """
        if self.budget and (takes := node.takes(made)) > self.budget:
            raise SettingError(f"a reply of {takes} bytes for a budget of {self.budget}: ask for {self.budget - 100}")
        return made


def _blanks(holder: Holder, node: Node) -> list[SyntheticSet]:
    """Return two sets of a blank image per class: one whose record says little, and one whose says much."""
    spec, counts = holder.spec, tuple(holder.counts.tolist())
    held = [c for c, n in enumerate(counts) if n]
    labels = torch.tensor(held, dtype=torch.uint8 if len(counts) <= 256 else torch.int16)
    images = torch.zeros(len(labels), *spec.shape, dtype=torch.uint8)
    of_data = (spec.name, spec.shape, spec.classes, spec.mean, spec.std)
    little = Record(*of_data, method="random", ipc=9, start="real", augmentation=spec.operations, counts=counts)
    made: dict[str, Any] = {"method": "mmd-ridge", "ipc": 100, "start": "gaussian", "steps": 1000, "seconds": 1000.1}
    much = replace(little, **made, seed=node.seed(0), network=default_network(spec.shape))
    return [SyntheticSet([Part({"images": images}, labels, Pixels(), record)]) for record in (little, much)]


def asked_in_bytes(task: Any) -> Any:
    """Return a task that says which codecs the server reads, if it asks for one or names a budget.

    Others than `InBytes` stay as they are, and so do `codecs` that are named: a server may read fewer than it could.
    """
    if not isinstance(task, InBytes) or not (task.codec or task.budget):
        return task
    return replace(task, codecs=task.codecs or tuple(CODECS))


def family_of(codec: str) -> str:
    """Return the word before the first hyphen, the name in `CODECS`."""
    return codec.partition("-")[0]

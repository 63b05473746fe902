"""What a node lets one question ask of it; `ledger` holds all questions of its life together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedcondense.errors import SettingError
from fedcondense.flower.settings import number

__all__ = ["SHARE_OF_RECORDS", "Caps", "Cost"]

SHARE_OF_RECORDS = 0.5
"""The share of a class's records that its stored images may number: more would save nobody a byte."""


@dataclass(frozen=True)
class Cost:
    """What a job takes and gives away; the node holds it to its caps, and charges its ledger, before the job runs.

    Args:
        images: Stored images that are sent, by class name.
        decoded: Images that they decode to, by class name.
        steps: Optimisation steps.
        nbytes: Of the payload.
        seconds: An estimate; `Node.until` binds the work itself.
        memory: Bytes at the peak, an estimate.
        pixels: Bytes of all decoded images as float32.
        networks: Names of the networks that are used.
        epsilon: Of differential privacy; 0 where nothing is promised.
        is_real: Whether real records are sent or started from.
    """

    images: Mapping[str, int] = field(default_factory=dict)
    decoded: Mapping[str, int] = field(default_factory=dict)
    steps: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    memory: int = 0
    pixels: int = 0
    networks: tuple[str, ...] = ()
    epsilon: float = 0.0
    is_real: bool = False

    def but(self, **changes: Any) -> Cost:
        """Return the same cost with some fields replaced."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Caps:
    """What a node lets a server ask of it; the node's config overrides each by its name in kebab-case, ``max-ipc`` say.

    Args:
        max_ipc: Images per class that may be asked for.
        max_steps: Optimisation steps.
        max_seconds: Of work, estimated before it and binding during it: at the limit the node answers with what is
            sound so far, or refuses.
        max_bytes: Of the reply's payload.
        max_memory: Bytes of working memory, as estimated.
        max_pixels: Bytes of the images that a reply decodes to, as float32.
        networks: Names of networks that may be asked for, by commas; empty: all that this node has.
        allow_real: Whether sets may hold real images or start from them, which publishes records.
        allow_weights: Whether a question may carry weights. Weights that a server chooses can be crafted so that what
            comes back shows a single record; take them from a server that you trust with records.
        min_records: How many records a stored image stands for at least: classes of fewer are left out, and a class of
            n records sends at most n / min_records images. Images of few records each are close to single records,
            whatever they start from (measured in experiments/records.md).
        allow_evaluate: Whether a question may carry weights that are only evaluated, on records kept apart: right
            answers per class leave, and nothing else. Crafted weights can make each count say something of these
            records. `allow_weights` allows it, too, and lets the loss leave.
    """

    max_ipc: int = number(50, 1)
    max_steps: int = number(5000, 0)
    max_seconds: float = number(3600.0, 0)
    max_bytes: int = number(8 << 20, 1)
    max_memory: int = number(8 << 30, 1)
    max_pixels: int = number(1 << 30, 1)
    networks: str = ""
    allow_real: bool = False
    allow_weights: bool = False
    min_records: int = number(10, 1)
    allow_evaluate: bool = False

    @property
    def share(self) -> float:
        """The largest share of a class's records that its stored images may number; never more than half."""
        return min(SHARE_OF_RECORDS, 1 / self.min_records)

    def check_ipc(self, ipc: int) -> None:
        """Refuse more images per class than this node condenses to, before anything is made of their number."""
        if not 1 <= ipc <= self.max_ipc:
            raise SettingError(f"ipc {ipc} asked for; this node condenses to 1 to {self.max_ipc} images per class")

    def check_steps(self, steps: int) -> None:
        """Refuse more steps than this node takes."""
        if steps > self.max_steps:
            raise SettingError(f"{steps} steps asked for; this node allows {self.max_steps}: ask for fewer")

    def check(self, cost: Cost) -> None:
        """Refuse a job that costs more than this node gives.

        Raises:
            SettingError: It says all that is too much, what is allowed, and what to ask for.
        """
        wrong = []
        if cost.is_real and not self.allow_real:
            wrong.append("it publishes real records; this node's config has no allow-real = true")
        if cost.steps > self.max_steps:
            wrong.append(f"{cost.steps} steps; this node allows {self.max_steps}: ask for fewer")
        if cost.seconds > self.max_seconds:
            allowed = f"this node allows {self.max_seconds:.0f}: ask for fewer steps or a smaller ipc"
            wrong.append(f"about {cost.seconds:.0f} seconds would be needed; {allowed}")
        for name, value, most in (
            ("payload", cost.nbytes, self.max_bytes),
            ("working memory", cost.memory, self.max_memory),
            ("decoded images", cost.pixels, self.max_pixels),
        ):
            if value > most:
                wrong.append(f"{value} bytes of {name}; this node allows {most}: ask for a smaller ipc")
        if fault := self._networks_fault(cost.networks):
            wrong.append(fault)
        if wrong:
            raise SettingError("; ".join(wrong))

    def check_networks(self, names: Iterable[str]) -> None:
        """Refuse networks that this node does not run."""
        if fault := self._networks_fault(names):
            raise SettingError(fault)

    def _networks_fault(self, names: Iterable[str]) -> str:
        allowed = {name.strip() for name in self.networks.split(",") if name.strip()}
        odd = sorted(set(names) - allowed) if allowed else []
        return f"networks {', '.join(odd)}; this node allows {', '.join(sorted(allowed))}" if odd else ""

    @classmethod
    def none(cls, min_records: int = 1) -> Caps:
        """Return caps that refuse nothing, for nodes in the process of whoever asks; classes of few records apart."""
        most = 2**62 - 1
        return cls(most, most, math.inf, most, most, most, "", True, True, min_records, True)

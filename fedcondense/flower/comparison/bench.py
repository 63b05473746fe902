"""What all rows of a comparison share: who holds what, the network, how it is measured, the nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from torch import Tensor

from fedcondense.condensing import Progress
from fedcondense.data import Data
from fedcondense.flower.asking import Asked
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.comparison.result import FederationProgress
from fedcondense.flower.replies import ReplyLimits
from fedcondense.training.fit import Fit

__all__ = ["Bench", "traffic"]


@dataclass(frozen=True)
class Bench:
    """Data, division, network and measure that every row of a comparison stands on.

    Args:
        train: All clients' data, on the device that they compute on.
        test: What the server tests on.
        partition: Who holds what: indices into `train`, one tensor per client.
        network: A name in `NETWORKS`.
        seed: All that is random follows from it.
        seeds: One network is trained and tested for each.
        recipe: How networks are trained on a set.
        min_records: Classes of fewer records are left out by every node, in every row.
        work: A folder for what a killed run goes on from; None: nothing is kept.
        progress: Told where the comparison is.
    """

    train: Data
    test: Data
    partition: Sequence[Tensor]
    network: str
    seed: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: Fit = field(default_factory=Fit)
    min_records: int = 1
    work: Path | None = None
    progress: Callable[[FederationProgress], None] = lambda _: None

    @property
    def everyone(self) -> int:
        """How many clients there are."""
        return len(self.partition)

    @property
    def names(self) -> tuple[str, ...]:
        """What clients are called, in order."""
        own = getattr(self.partition, "names", ())
        return tuple(own) or tuple(f"client-{k}" for k in range(self.everyone))

    @property
    def asked(self) -> Asked:
        """All clients, in each round."""
        return Asked(min_train_nodes=self.everyone, min_available_nodes=self.everyone)

    @property
    def limits(self) -> ReplyLimits:
        """Sets of any size: all nodes are this process, and whoever calls it."""
        return ReplyLimits.none(self.train.spec)

    def load(self, context: Context) -> Data:
        """Return a client's data."""
        return self.train.subset(self.partition[int(context.node_config["partition-id"])])

    def client(self, row: str, stage: str = "") -> ClientApp:
        """Return what every node runs; progress of clients is that of a `stage` of the row."""

        def step(partition: int, at: Progress) -> None:
            place = f"client {partition + 1} of {self.everyone}"
            done = (partition + at.step / max(at.steps, 1)) / self.everyone
            detail = f"{place}, step {at.step} of {at.steps}, loss {at.loss:.3g}"
            self.progress(FederationProgress(row, detail, done, stage))

        caps = Caps.none(self.min_records)
        return make_client_app(self.load, caps=caps, cache=self.work, progress=step, is_counted=False)


def traffic(grid: Mapping[int, Any], everyone: int) -> dict[str, float]:
    """Return the mean bytes per client of all messages on an in-process grid."""
    return {f"bytes_{way}": sum(getattr(t, way) for t in grid.values()) / everyone for way in ("up", "down")}

"""Each site alone: what a federation is worth to a site is what it adds to this."""

from __future__ import annotations

import logging
import statistics
from typing import Any

import torch
from flwr.serverapp.strategy import Strategy

from fedcondense.errors import SettingError
from fedcondense.flower.caps import Caps
from fedcondense.flower.comparison.bench import Bench
from fedcondense.flower.comparison.result import FederationProgress
from fedcondense.flower.contract import Node
from fedcondense.flower.evaluating import train_alone
from fedcondense.flower.ledger import Allowance
from fedcondense.flower.node_config import NodeConfig, Placed
from fedcondense.flower.run_folder import plain
from fedcondense.flower.strategies import Entry, ServerSide
from fedcondense.training.fit import accuracy

__all__ = ["LOCAL_ONLY", "local_only"]

_LOG = logging.getLogger(__name__)


def local_only(bench: Bench, row: str) -> dict[str, Any]:
    """Train a network at each site on its own records, by the bench's recipe, and test all on the server's test set.

    It costs a training per site, where other rows train one network per seed. Sites without enough records are left
    out, as in every other row.

    Returns:
        The row: means over sites, ``accuracy_worst``, ``sites`` with the accuracy of each in percent and their
        ``names``, and no bytes.

    Raises:
        SettingError: No site has enough records.
    """
    placed = Placed(NodeConfig(), Caps.none(bench.min_records), Allowance())
    percents, per_class, names = list[float](), list[torch.Tensor](), list[str]()
    for place, index in enumerate(bench.partition):
        where = f"training {place + 1} of {bench.everyone}, one per client"
        bench.progress(FederationProgress(row, where, place / bench.everyone))
        try:
            data = placed.enough(bench.train.subset(index))
        except SettingError as few:
            _LOG.warning("%s is left out: %s", bench.names[place], few)
            continue
        seed = Node(bench.names[place], place=place).seed(bench.seed, "alone")
        percent, classes = accuracy(train_alone(data, bench.network, bench.recipe, seed), bench.test.to(data.device))
        percents.append(percent)
        names.append(bench.names[place])
        per_class.append(classes)
    if not percents:
        raise SettingError(f"{row}: no client has {bench.min_records} records of a class (min_records); ask for fewer")
    return {
        "accuracy": statistics.fmean(percents),
        "accuracy_std": None,
        "accuracy_worst": min(percents),
        "per_class": plain(torch.stack(per_class).mean(0).tolist()),
        "sites": plain(percents),
        "names": names,
        "clients": len(percents),
        "bytes_up": 0.0,
        "bytes_down": 0.0,
    }


def _nothing_travels(side: ServerSide) -> Strategy:
    raise SettingError("each site alone is no strategy: no message travels; it is a row of `federate`")


LOCAL_ONLY = Entry(
    _nothing_travels,
    label="each site alone, mean over sites",
    travels="nothing",
    seen="nobody sees anything",
    settings=None,
)

"""Avalanche as the host: condensed sets as the memory of replay strategies in continual learning.

Importing this package is free and needs no Avalanche; the first use of a name in it imports avalanche (ten seconds).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedcondense.errors import MissingExtraError

if TYPE_CHECKING:
    from fedcondense.avalanche.averaging import WeightAveragingPlugin as WeightAveragingPlugin
    from fedcondense.avalanche.benchmarks import domain_benchmark as domain_benchmark
    from fedcondense.avalanche.benchmarks import split_benchmark as split_benchmark
    from fedcondense.avalanche.buffer import CondensedBuffer as CondensedBuffer
    from fedcondense.avalanche.checkpoints import maybe_load_checkpoint as maybe_load_checkpoint
    from fedcondense.avalanche.checkpoints import save_checkpoint as save_checkpoint
    from fedcondense.avalanche.coded import CodedBuffer as CodedBuffer
    from fedcondense.avalanche.logits import CondensedBufferWithLogits as CondensedBufferWithLogits
    from fedcondense.avalanche.metrics import buffer_metrics as buffer_metrics
    from fedcondense.avalanche.plugins import CondensedGDumbPlugin as CondensedGDumbPlugin
    from fedcondense.avalanche.plugins import CondensedReplayPlugin as CondensedReplayPlugin
    from fedcondense.avalanche.progress import ProgressLogger as ProgressLogger
    from fedcondense.avalanche.strategies import CondensedDER as CondensedDER
    from fedcondense.avalanche.strategies import CondensedGDumb as CondensedGDumb
    from fedcondense.avalanche.strategies import CondensedReplay as CondensedReplay

_HOMES = {
    "CodedBuffer": "coded",
    "CondensedBuffer": "buffer",
    "CondensedBufferWithLogits": "logits",
    "CondensedDER": "strategies",
    "CondensedGDumb": "strategies",
    "CondensedGDumbPlugin": "plugins",
    "CondensedReplay": "strategies",
    "CondensedReplayPlugin": "plugins",
    "ProgressLogger": "progress",
    "WeightAveragingPlugin": "averaging",
    "buffer_metrics": "metrics",
    "domain_benchmark": "benchmarks",
    "maybe_load_checkpoint": "checkpoints",
    "save_checkpoint": "checkpoints",
    "split_benchmark": "benchmarks",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] == "avalanche":
            raise MissingExtraError("avalanche-lib", "avalanche") from missing
        raise
    globals()[name] = value
    return value

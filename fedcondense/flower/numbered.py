"""Flower's own strategies from any round on: rounds keep their numbers, and nodes are chosen by a seed.

FedAdam corrects its moments by the number of the round, and sites draw their batches by it: a run that goes on in a new
process ends equal only if the first round that it runs has the number that it would have had. Flower also chooses nodes
by Python's global generator, which belongs to the process.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedcondense.errors import ResumeError
from fedcondense.randomness import child_seed

__all__ = ["Numbered"]


class Numbered(Strategy):
    """A strategy around one of Flower's, which runs the rounds that are left of a run.

    Where a run is killed, `fedcondense.flower.optimizer_state.held` of this one is all that there is to keep, and
    `hold` puts it back.

    Args:
        strategy: It does the work.
        seed: Of the choice of nodes, with the number of the round.
        rounds_before: How many rounds of the run are done.

    Raises:
        ResumeError: From `start`: the strategy has a `start` of its own, which nobody can begin at a later round.
    """

    def __init__(self, strategy: Strategy, seed: int = 0, rounds_before: int = 0) -> None:
        self.strategy, self.seed, self.rounds_before = strategy, seed, rounds_before
        self.arrays = ArrayRecord()  # the last average

    def summary(self) -> None:
        """Log the strategy's settings."""
        self.strategy.summary()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run what is left of `num_rounds`; arguments and result are those of the whole run."""
        configs = (timeout, train_config, evaluate_config)
        if type(self.strategy).start is not Strategy.start:
            if self.rounds_before:
                name = type(self.strategy).__name__
                raise ResumeError(f"{name} has a start of its own, which begins at round 1: start over")
            return self.strategy.start(grid, initial_arrays, num_rounds, *configs, evaluate_fn)
        before = self.rounds_before

        def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            is_seen = before and not number  # where the run stood when it was killed
            return None if evaluate_fn is None or is_seen else evaluate_fn(before + number, arrays)

        self.arrays = self.arrays if before else initial_arrays
        left = max(0, num_rounds - before)
        result = super().start(grid, self.arrays, left, *configs, evaluate if evaluate_fn else None)
        for kind in ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp"):
            setattr(result, kind, {before + number: metrics for number, metrics in getattr(result, kind).items()})
        result.arrays = result.arrays or self.arrays
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the strategy's messages for the round of that number in the whole run."""
        return self._chosen(self.strategy.configure_train, server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return what the strategy makes of them, and keep the arrays."""
        arrays, metrics = self.strategy.aggregate_train(self.rounds_before + server_round, replies)
        if arrays is not None:
            self.arrays = arrays
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the strategy's messages, likewise."""
        return self._chosen(self.strategy.configure_evaluate, server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return what the strategy makes of them."""
        return self.strategy.aggregate_evaluate(self.rounds_before + server_round, replies)

    def _chosen(self, configure: Any, server_round: int, *given: Any) -> list[Message]:
        """Let a strategy choose nodes, of whom Flower takes a sample by `random`; its state is left as it was."""
        number, before = self.rounds_before + server_round, random.getstate()
        random.seed(child_seed(self.seed, "nodes", number))
        try:
            return list(configure(number, *given))
        finally:
            random.setstate(before)

"""How far an experience is, where nobody looks at a terminal."""

from __future__ import annotations

from typing import Any

from avalanche.logging import BaseLogger

from fedcondense.progress import reporting, still_working

__all__ = ["ProgressLogger"]


class ProgressLogger(BaseLogger):
    """Tells a `fedcondense.progress.reporting` that is open around a strategy how far training is.

    It takes the place of `InteractiveLogger` off a terminal: a line now and then, whose pace is that of `reporting`,
    instead of a bar per epoch. Condensing tells of itself. Without a `reporting` around it nothing is said.

    >>> with reporting("my stream"):  # doctest: +SKIP
    ...     strategy = Naive(..., evaluator=EvaluationPlugin(loggers=[ProgressLogger()]))
    ...     strategy.train(benchmark.train_stream[0])
    """

    def after_training_iteration(self, strategy: Any, metric_values: Any, **kwargs: Any) -> None:
        """Tell of an iteration."""
        clock, epochs = strategy.clock, max(1, strategy.train_epochs)
        done = clock.train_exp_epochs + clock.train_epoch_iterations / max(1, len(strategy.dataloader))
        with reporting("training", bar=False) as report:
            report(min(1.0, done / epochs), f"epoch {min(epochs, clock.train_exp_epochs + 1)} of {epochs}")

    def after_eval_iteration(self, strategy: Any, metric_values: Any, **kwargs: Any) -> None:
        """Tell that it goes on."""
        still_working()

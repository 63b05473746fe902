"""Rows: the measurements of each line's cells, with scores and with warnings that say what to try."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fedcondense.sets.selection import SELECTIONS
from fedcondense.sweeps.compute import Outcome
from fedcondense.sweeps.grids import ALL_REAL, Cell, SetRecipe, TableRow
from fedcondense.sweeps.paired import difference, place_of, references
from fedcondense.sweeps.scores import (
    augmentation_robust_score,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
)
from fedcondense.training.protocols import protocol_of

__all__ = ["KEYS", "RANDOM", "Row", "percent", "read"]

RANDOM = "random"
"""The selection that a distilled set has to beat at equal bytes."""

_GAP = 50.0  # points between the set's own images and the test images
_SPREAD = 3.0  # points over sets and networks
_MORE_BYTES, _TEXTS = 1.05, 300  # times those of random real images, and what a method's record may be longer
_OVER_BUDGET = 1.25  # times the budget


@dataclass(frozen=True)
class Row:
    """One line of a table; percent and points where nothing else is said, None where nothing was measured.

    Args:
        objective: The objective, the selection, or `ALL_REAL`.
        parametrization: How images are stored.
        data: The data set.
        network: What condensed; empty for real images.
        test_network: What was trained on the set.
        ipc: Images per class whose bytes the set may take; None for all real data.
        nbytes: The set's file with seconds 0, mean over sets; for all real data one byte per value and per label.
        accuracy: Mean over sets and networks, last step, all test images.
        accuracy_std: Standard deviation over sets and networks together; None for a single one.
        sets: How many were measured.
        networks: How many were trained on each.
        steps: Optimisation steps of a set; of all real data, of training.
        cpu_seconds: Of making a set, pools included, mean over sets.
        train_accuracy: On the images of the set itself.
        hard_accuracy: With each image's most likely label alone, where scores were asked for.
        plain_accuracy: Without augmentation, where scores were asked for.
        lrs: Label-robust score, in [0, 100].
        ars: Augmentation-robust score, in [0, 100].
        varied: What a sensitivity sweep varies.
        value: Its value.
        warnings: What looks wrong, and what to try.
        error: Why there is no accuracy.
        budget: CPU seconds per set that were asked for.
        failed: How many sets were not made.
        protocol: How test networks were trained: a name in `PROTOCOLS`, or ``"own"``.
        against: The row from which the difference is taken; empty for that row itself.
        difference: Of accuracies, paired by the seeds of sets, mean; a set of a seed is measured by the same networks.
        difference_error: Standard error of that mean over sets; None for one set.
        peak_bytes: Held at the peak while a set was made, by the process or on a GPU: the largest of the sets.
        version: Of the code that computed the cells, with its commit where it ran from a checkout.
        setting: What was set beside what the other values name.
    """

    objective: str
    parametrization: str
    data: str
    network: str
    test_network: str
    ipc: int | None
    nbytes: int | None
    accuracy: float | None
    accuracy_std: float | None
    sets: int
    networks: int
    steps: int | None = None
    cpu_seconds: float | None = None
    train_accuracy: float | None = None
    hard_accuracy: float | None = None
    plain_accuracy: float | None = None
    lrs: float | None = None
    ars: float | None = None
    varied: str = ""
    value: float | None = None
    warnings: tuple[str, ...] = ()
    error: str = ""
    budget: float | None = None
    failed: int = 0
    protocol: str = "short"
    against: str = ""
    difference: float | None = None
    difference_error: float | None = None
    peak_bytes: int | None = None
    version: str = ""
    setting: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_distilled(self) -> bool:
        """Whether the images are synthetic."""
        return self.objective not in SELECTIONS and self.objective != ALL_REAL

    def to_dict(self) -> dict[str, Any]:
        """Return what `--format json` and the CSV hold, by the names in `KEYS`."""
        return {key: list(value) if isinstance(value := getattr(self, key), tuple) else value for key in KEYS}


KEYS = (
    "objective", "parametrization", "data", "network", "test_network", "ipc", "nbytes", "accuracy", "accuracy_std",
    "sets", "networks", "steps", "cpu_seconds", "lrs", "ars", "varied", "value", "train_accuracy", "hard_accuracy",
    "plain_accuracy", "warnings", "error", "protocol", "against", "difference", "difference_error", "peak_bytes",
    "version", "setting",
)  # fmt: skip
"""The stable names of a row's values, in order."""


def read(lines: Iterable[TableRow], outcomes: Mapping[Cell, Outcome], against: str | None = None) -> list[Row]:
    """Return a row for each line, with scores, warnings, and the difference to the row that is called `against`.

    None: to the first row of the same data, size, test network and protocol.
    """
    lines = list(lines)
    first = references(lines, against)
    peaks = {cell.making: peak for cell, held in outcomes.items() if (peak := held.get("peak_bytes"))}
    rows = [_row(line, outcomes, first.get(place_of(line)), peaks) for line in lines]
    random = {_place(row): row for row in rows if row.objective == RANDOM and row.accuracy is not None}
    whole = {_measured_by(row): row for row in rows if row.objective == ALL_REAL}
    scored = [_scored(row, random.get(_place(row)), whole.get(_measured_by(row))) for row in rows]
    return [replace(row, warnings=_warnings(row, random.get(_place(row)))) for row in scored]


def _row(
    line: TableRow, outcomes: Mapping[Cell, Outcome], first: TableRow | None, peaks: Mapping[SetRecipe, int]
) -> Row:
    making, measuring = line.cells[0].making, line.cells[0].measuring
    apart = difference(line, first, outcomes)
    held = [_seen_by(line.test_network, outcomes[cell]) for cell in line.cells]
    good = [outcome for outcome in held if "error" not in outcome]
    bad = [outcome for outcome in held if "error" in outcome]

    def measured(name: str) -> list[float]:
        return [value for outcome in good for value in outcome["measured"][line.test_network].get(name, ())]

    accuracies = measured("accuracies")
    return Row(
        objective=making.method,
        parametrization=good[0].get("parametrization", "") if good else making.parametrization,
        data=making.data,
        network=making.network,
        test_network=line.test_network,
        ipc=making.ipc or None,
        nbytes=round(statistics.fmean(outcome["nbytes"] for outcome in good)) if good else None,
        accuracy=_mean(accuracies),
        accuracy_std=round(statistics.stdev(accuracies), 3) if len(accuracies) > 1 else None,
        sets=len(good),
        networks=measuring.networks,
        steps=(good[0]["steps"] or None) if good else making.tuning.steps,
        cpu_seconds=_mean([outcome["cpu_seconds"] for outcome in good]),
        train_accuracy=_mean(measured("on_set")),
        hard_accuracy=_mean(measured("hard")),
        plain_accuracy=_mean(measured("plain")),
        varied=line.varied,
        value=line.value,
        warnings=tuple(_divergence(bad, len(held))),
        error="; ".join(dict.fromkeys(outcome["error"] for outcome in bad)),
        budget=making.tuning.budget,
        failed=len(bad),
        protocol=protocol_of(measuring.fit),
        against=first.cells[0].making.method if first is not None and apart is not None else "",
        difference=None if apart is None else apart.mean,
        difference_error=None if apart is None else apart.error,
        peak_bytes=max((peaks[cell.making] for cell in line.cells if cell.making in peaks), default=None),
        version=", ".join(dict.fromkeys(outcome.get("settings", {}).get("version", "") for outcome in held)),
        setting=_setting(line.cells[0]),
    )


def _setting(cell: Cell) -> dict[str, Any]:
    """Return what a cell sets, but for what has a column of its own."""
    tuning = {name: value for name, value in asdict(cell.making.tuning).items() if value not in (None, ())}
    return {**tuning, "precision": cell.making.precision, "evaluation": asdict(cell.measuring.fit)}


def _seen_by(network: str, outcome: Outcome) -> Outcome:
    """Return a cell's outcome, or the error of this test network in its place."""
    found = outcome.get("measured", {}).get(network, {})
    return {"error": found["error"], "kind": "error"} if "error" in found else outcome


def _place(row: Row) -> tuple[Any, ...]:
    return row.data, row.ipc, row.test_network, row.protocol


def _measured_by(row: Row) -> tuple[str, str, str]:
    return row.data, row.test_network, row.protocol


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 3) if values else None


def _scored(row: Row, random: Row | None, whole: Row | None) -> Row:
    """Add the scores, from mean accuracies, where all that they need was measured."""
    if random is None or row.accuracy is None or random.accuracy is None or row.ipc is None:
        return row
    gain, lrs, ars = improvement_over_random(row.accuracy, random.accuracy), None, None
    if whole is not None and whole.accuracy is not None and row.hard_accuracy is not None:
        lrs = round(label_robust_score(hard_label_recovery(whole.accuracy, row.hard_accuracy), gain), 2)
    if row.plain_accuracy is not None and random.plain_accuracy is not None:
        ars = round(augmentation_robust_score(gain, row.plain_accuracy - random.plain_accuracy), 2)
    return replace(row, lrs=lrs, ars=ars)


def _divergence(bad: Sequence[Outcome], sets: int) -> Iterable[str]:
    diverged = sum(outcome.get("kind") == "divergence" for outcome in bad)
    if diverged:
        yield f"{diverged} of {sets} sets diverged: try a smaller step size (`sweep sensitivity` compares some)"


def _warnings(row: Row, random: Row | None) -> tuple[str, ...]:
    """Return the signatures of failure that a distilled row shows; real images have none."""
    if not row.is_distilled:
        return row.warnings
    found = list(row.warnings)
    if random is not None and random.accuracy is not None and row.accuracy is not None:
        margin = max(row.accuracy_std or 0.0, random.accuracy_std or 0.0)
        if row.accuracy - random.accuracy <= margin:
            found.append(
                f"no better than random real images of as many bytes ({percent(random)}): try more steps, a larger "
                "step size or another objective, or keep real images"
            )
        if row.nbytes and random.nbytes and row.nbytes > _MORE_BYTES * random.nbytes + _TEXTS:
            found.append(
                f"takes {row.nbytes:,} bytes where random real images take {random.nbytes:,}: compare at equal bytes"
            )
    if row.accuracy is not None and row.train_accuracy is not None and row.train_accuracy - row.accuracy > _GAP:
        found.append(
            f"networks know {row.train_accuracy:.0f} % of the set and {row.accuracy:.0f} % of the test images: try "
            "more bytes, or a parametrization that decodes to more images"
        )
    if row.accuracy_std is not None and row.accuracy_std > _SPREAD:
        found.append(
            f"spreads by {row.accuracy_std:.1f} points over sets and networks: try more steps or a smaller step size, "
            "and more sets before comparing"
        )
    if row.budget and row.cpu_seconds and row.cpu_seconds > _OVER_BUDGET * row.budget:
        found.append(f"took {row.cpu_seconds:.0f} CPU seconds of {row.budget:g}: compare at equal cost")
    return tuple(found)


def percent(row: Row) -> str:
    """Write an accuracy and its deviation."""
    if row.accuracy is None:
        return "failed"
    return f"{row.accuracy:.1f}" + ("" if row.accuracy_std is None else f" ± {row.accuracy_std:.1f}")

"""Class by class: who holds what, what arrived, and what the network makes of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedcondense.report.reading import list_of, mapping_of, number_of
from fedcondense.report.results import JOINED, NONE, ReportRow

__all__ = ["classes_of", "counts_of", "coverage_of", "held_of", "over_all"]


def held_of(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return who holds what: as it was divided, or as sites' sets say."""
    return mapping_of(result.get("partition")) or mapping_of(result.get("held"))


def counts_of(result: Mapping[str, Any]) -> list[list[int]]:
    """Return how many records of each class each client holds; empty if the file does not say, or says nonsense."""
    rows = list_of(held_of(result).get("counts"))
    counts = [[int(n) for n in map(number_of, list_of(row)) if math.isfinite(n)] for row in rows]
    return counts if len({len(row) for row in counts}) == 1 else []


def classes_of(result: Mapping[str, Any], counts: Sequence[Sequence[int]]) -> list[str]:
    """Return the class names, or numbers where the file has none that fit."""
    wide = len(counts[0]) if counts else 0
    places = (result, held_of(result), mapping_of(result.get("settings")))
    for names in (list_of(place.get("classes")) for place in places):
        if names and len(names) == (wide or len(names)):
            return [str(name) for name in names]
    return [str(k) for k in range(wide)]


def coverage_of(
    result: Mapping[str, Any], rows: Sequence[ReportRow], classes: Sequence[str], counts: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """Return for each class how many records and clients hold it, what arrived, and the accuracy of our row."""
    arrived = mapping_of(result.get("coverage"))
    ours = next((row for row in rows if row.is_ours), ReportRow("none"))
    scored = {str(one.get("name")): one for one in map(mapping_of, list_of(ours.scores.get("classes")))}
    lines = []
    for k, name in enumerate(classes):
        column = [row[k] for row in counts]
        accuracy = ours.per_class[k] if k < len(ours.per_class) else math.nan
        lines.append(
            {
                "name": name,
                "records": sum(column) if counts else NONE,
                "clients": sum(n > 0 for n in column) if counts else NONE,
                "arrived": arrived.get(name, NONE),
                "accuracy": f"{accuracy:.1f} %" if math.isfinite(accuracy) else NONE,
                **_scored(scored.get(name, {})),
            }
        )
    return lines


def _scored(one: Mapping[str, Any]) -> dict[str, str]:
    """Return a class's scores as text, with their intervals."""

    def share(name: str) -> str:
        value, ends = number_of(one.get(name)), list(map(number_of, list_of(one.get(f"{name}_interval"))))
        if not math.isfinite(value) or len(ends) != 2:
            return NONE
        parts = f"{value:.1f} %", f"({ends[0]:.1f} to {ends[1]:.1f})"  # a narrow column breaks between them alone
        return " ".join(part.replace(" ", JOINED) for part in parts)

    area = number_of(one.get("auroc"))
    return {
        "sensitivity": share("sensitivity"),
        "specificity": share("specificity"),
        "auroc": f"{area:.3f}" if math.isfinite(area) else NONE,
    }


def over_all(rows: Sequence[ReportRow]) -> str:
    """Return in a sentence what our network is worth on all test records, beside the classes."""
    row = next((row for row in rows if row.is_ours), None)
    scores = {} if row is None else row.scores
    accuracy, balanced, off = (number_of(scores.get(n)) for n in ("accuracy", "balanced_accuracy", "calibration_error"))
    ends = list(map(number_of, list_of(scores.get("accuracy_interval"))))
    if not all(map(math.isfinite, (accuracy, balanced, off, *ends))) or len(ends) != 2:
        return ""
    return (
        f"The network in this folder, that of {row.label if row else ''}, has {accuracy:.1f} % "
        f"({ends[0]:.1f} to {ends[1]:.1f}) on "
        f"{number_of(scores.get('records')):,.0f} test records, {balanced:.1f} % as the mean over classes; its stated "
        f"probabilities are off by {off:.1f} points on average (expected calibration error)."
    )

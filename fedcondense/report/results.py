"""What a federation's folder says: its rows, read tolerantly, and what they say in words."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedcondense.errors import DataError
from fedcondense.report.leads import doubt
from fedcondense.report.reading import list_of, mapping_of, number_of
from fedcondense.report.rounds import PastRound, past_of
from fedcondense.report.units import human_bytes
from fedcondense.sets.selection import SELECTIONS

__all__ = [
    "JOINED",
    "LEAST",
    "NONE",
    "ReportRow",
    "headline",
    "images_tested",
    "read_result",
    "read_rows",
    "shown_cells",
    "table",
]

_NUMBERS = ("accuracy", "accuracy_std", "bytes_up", "bytes_down", "seconds")
JOINED = "\N{NO-BREAK SPACE}"
NONE = "\N{EN DASH}"
LEAST = 0.5
"""Points: a smaller lead is none, however many images it was measured on."""
_FORMAT = 2  # of result.json: what is newer may mean something else


@dataclass(frozen=True)
class ReportRow:
    """One way to train the global network, as measured; what was not measured is nan.

    Args:
        name: As in `result.json`, such as ``"fedavg-20"``.
        accuracy: Of the global network on the test data, percent.
        accuracy_std: Standard deviation over seeds, in points.
        bytes_up: What a client sends, mean over clients, all rounds together.
        bytes_down: What a client receives.
        seconds: Wall clock of the whole row.
        per_class: Accuracy of each class, percent; empty where it was not kept.
        label: The name as a reader would say it.
        travels: What a client sends.
        seen: Who sees what.
        rounds: How many there were.
        past: Each of them, as far as the file tells.
        tested: On how many test images `accuracy` was measured.
        seeds: Over how many its spread is.
        scores: What its first network's probabilities are worth (`fedcondense.training.scores`), as the file tells.
    """

    name: str
    accuracy: float = math.nan
    accuracy_std: float = math.nan
    bytes_up: float = math.nan
    bytes_down: float = math.nan
    seconds: float = math.nan
    per_class: tuple[float, ...] = ()
    label: str = ""
    travels: str = ""
    seen: str = ""
    rounds: int = 1
    past: tuple[PastRound, ...] = ()
    tested: float = math.nan
    seeds: int = 1
    scores: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether synthetic images travel."""
        return self.travels.startswith("synthetic")

    @property
    def is_averaging(self) -> bool:
        """Whether weights travel."""
        return self.travels.startswith("weights")

    @property
    def bytes_both(self) -> float:
        """What a client sends and receives."""
        return self.bytes_up + self.bytes_down

    @property
    def measured(self) -> str:
        """Accuracy and spread, such as ``83.1 ± 0.4 %``."""
        if not math.isfinite(self.accuracy):
            return "not measured"
        spread = f" ± {self.accuracy_std:.1f}" if math.isfinite(self.accuracy_std) else ""
        return f"{self.accuracy:.1f}{spread} %".replace(" ", JOINED)

    def clearly_above(self, other: ReportRow) -> bool:
        """Tell whether the lead over `other` is more than `needed_over`."""
        return self.accuracy - other.accuracy > self.needed_over(other)

    def needed_over(self, other: ReportRow) -> float:
        """Return the lead, in points, that test images and seeds can show: half a point, or what they leave open."""
        spreads = [(row.accuracy_std, row.seeds) for row in (self, other) if math.isfinite(row.accuracy_std)]
        errors = [spread / math.sqrt(seeds) for spread, seeds in spreads]
        return max(LEAST, doubt((self.accuracy, other.accuracy), self.tested, errors))


def read_result(directory: str | Path) -> dict[str, Any]:
    """Return what `result.json` in `directory` holds.

    Raises:
        DataError: There is none, or it is not a JSON object.
    """
    path = Path(directory) / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if sets := _sets_in(path.parent):
            picture = sets[0].with_suffix(".png")
            show = shlex.join(["fedcondense", "show", str(sets[0]), "--output", str(picture)])
            held = ", ".join(one.name for one in sets[:3]) + (", ..." if len(sets) > 3 else "")
            raise DataError(
                f"{path.parent} is not the folder of a federation ({path.name} does not exist); it holds {held}, and a "
                f"set or memory is shown by its file: {show}"
            ) from None
        made = "fedcondense federate DATA --output DIR"
        raise DataError(f"{path} does not exist; a report needs the folder that `{made}` wrote") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it, and give the command of the run again") from error
    if not isinstance(result, dict):
        raise DataError(f"{path} holds a {type(result).__name__}; needed: the object that `federate` writes")
    if number_of(result.get("format", 1)) > _FORMAT:
        raise DataError(f"{path} is of format {result['format']}; update fedcondense to read it")
    return result


def _sets_in(folder: Path) -> list[Path]:
    """Return the files of sets and memories in a folder, by how their headers begin; networks are none."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if b'"fedcondense":' in file.read(64):
                found.append(path)
    return found


def read_rows(result: Mapping[str, Any]) -> list[ReportRow]:
    """Return the measured rows: synthetic images, then weights by rounds, then the others; what is missing is nan."""
    rows = []
    seeds = len(list_of(mapping_of(result.get("settings")).get("evaluation_seeds")))
    tested = images_tested(result)
    measured = mapping_of(result.get("rows"))
    of_the_run = result.get("rounds") if len(measured) == 1 else None  # of a server app, which has one row
    for name, values in measured.items():
        values = mapping_of(values)
        numbers = {key: number_of(values.get(key)) for key in _NUMBERS}
        if seeds == 1:
            numbers["accuracy_std"] = math.nan  # a single run has no spread, whatever the file says
        per_class = tuple(map(number_of, list_of(values.get("per_class"))))
        past = past_of(values.get("history", of_the_run))
        scores = mapping_of(values.get("scores"))
        if not math.isfinite(numbers["seconds"]) and past:
            numbers["seconds"] = sum(one.seconds for one in past)
        row = ReportRow(str(name), **numbers, per_class=per_class, past=past, scores=scores)  # type: ignore[arg-type]  # floats by name
        rows.append(replace(row, **_about(str(name), values.get("about")), tested=tested, seeds=max(1, seeds)))
    return sorted(rows, key=lambda row: (not row.is_ours, not row.is_averaging, row.is_averaging and row.rounds))


def images_tested(result: Mapping[str, Any]) -> float:
    """Return how many test images rows were measured on; of an older file as its scores say, nan where they do not."""
    scored = [mapping_of(mapping_of(row).get("scores")) for row in mapping_of(result.get("rows")).values()]
    found = [result.get("tested"), *(scores.get("records") for scores in scored)]
    return next((n for n in map(number_of, found) if n >= 1), math.nan)


def _about(name: str, about: Any) -> dict[str, Any]:
    """Return what a row says of itself; rows of format 1 say nothing, and their names tell the most of it."""
    told = mapping_of(about)
    head, _, number = name.rpartition("-")
    averaging = head == "fedavg" and number.isdecimal()
    rounds = number_of(told.get("rounds", int(number) if averaging else 1))
    real = name.removesuffix("-real") in SELECTIONS
    guess = "weights, every round" if averaging else "synthetic images" if name == "one-shot" else "real images" * real
    plain = name if name == "one-shot" else name.replace("-", " ")
    label = f"FedAvg, {number} round{'s' if number != '1' else ''}" if averaging else plain
    return {
        "label": str(told.get("label", label)),
        "travels": str(told.get("travels", guess)),
        "seen": str(told.get("seen", "")),
        "rounds": int(rounds) if math.isfinite(rounds) else 1,
    }


def headline(rows: Sequence[ReportRow]) -> list[str]:
    """Say in a few sentences how synthetic images did against FedAvg and against the controls, whoever won."""
    ours = next((row for row in rows if row.is_ours and math.isfinite(row.accuracy)), None)
    if ours is None:
        return ["This run did not measure a row of synthetic images, so there is nothing to compare."]
    is_one_round = ours.rounds == 1 and ours.travels == "synthetic images"
    what = "One round of synthetic images" if is_one_round else f"{ours.label} ({ours.travels})"
    said = [f"{what} reaches {ours.measured} with {human_bytes(ours.bytes_up)} up per client."]
    fedavg = [row for row in rows if row.is_averaging and math.isfinite(row.accuracy)]
    if fedavg:
        there = next((row for row in fedavg if row.accuracy >= ours.accuracy), None)
        row = there or max(fedavg, key=lambda row: row.accuracy)
        factor = row.bytes_up / ours.bytes_up if ours.bytes_up else math.nan
        cost = f"{row.measured} with {human_bytes(row.bytes_up)}, {factor:.3g} times the bytes"
        rounds = f"{row.rounds} round{'s' if row.rounds > 1 else ''}"
        verdict = "gets there in" if there else "is not there after" if ours.clearly_above(row) else "is level in"
        why = f"; {_no_difference(ours, row)}" if verdict == "is level in" else ""
        said.append(f"{row.label.partition(',')[0]} {verdict} {rounds}: {cost}{why}.")
    controls = [row for row in rows if not row.is_ours and not row.is_averaging and math.isfinite(row.accuracy)]
    affordable = [row for row in controls if not row.bytes_up > 1.02 * ours.bytes_up]
    if affordable:
        best = max(affordable, key=lambda row: row.accuracy)
        if best.clearly_above(ours):
            said.append(f"A simpler way wins here: {best.label}, {best.measured} with {human_bytes(best.bytes_up)}.")
        elif ours.clearly_above(best):
            said.append(f"No control does as well for as few bytes; the best is {best.label}, {best.measured}.")
        else:
            said.append(f"A simpler way is level, {best.label}, {best.measured}: {_no_difference(ours, best)}.")
    dearer = max((row for row in controls if row not in affordable), key=lambda row: row.accuracy, default=None)
    if dearer and dearer.clearly_above(ours):
        cost = f"{dearer.measured} with {human_bytes(dearer.bytes_up)}"
        said.append(f"With more bytes, {dearer.label} does better: {cost}.")
    return said


def _no_difference(one: ReportRow, other: ReportRow) -> str:
    on = f"on {one.tested:,.0f} test images" if math.isfinite(one.tested) else "beyond the spread over seeds"
    return f"no difference seen {on}, where a lead of {one.needed_over(other):.1f} points would be one"


def table(rows: Sequence[ReportRow]) -> list[tuple[str, ...]]:
    """Return the rows as lines of text, a heading first."""
    heading = ("way", "accuracy", "bytes up per client", "bytes down per client", "in all", "seconds")
    lines = [shown_cells(row) for row in rows]
    measured = [c["measured"].replace(JOINED, " ") for c in lines]
    names = ("up", "down", "both", "seconds")
    return [heading, *((c["label"], m, *(c[n] for n in names)) for c, m in zip(lines, measured, strict=True))]


def shown_cells(row: ReportRow) -> dict[str, Any]:
    """Return what the table shows of a row."""
    return {
        "name": row.name,
        "label": row.label,
        "travels": row.travels,
        "seen": row.seen,
        "ours": row.is_ours,
        "real": row.travels.startswith("real"),
        "measured": row.measured,
        "up": human_bytes(row.bytes_up) if math.isfinite(row.bytes_up) else NONE,
        "down": human_bytes(row.bytes_down) if math.isfinite(row.bytes_down) else NONE,
        "both": human_bytes(row.bytes_both) if math.isfinite(row.bytes_both) else NONE,
        "seconds": f"{row.seconds:.1f}" if math.isfinite(row.seconds) else NONE,
    }

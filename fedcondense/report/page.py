"""The report of a federation: one HTML file that needs nothing else, from the folder that `federate` wrote.

Whatever comes from clients (class names, reasons, images) is a stranger's: text is escaped, sets are read through the
same checks as any other file, and a policy in the page forbids scripts and requests.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedcondense.errors import DataError, FedcondenseError

__all__ = ["Client", "Row", "headline", "read_result", "read_rows", "table", "write_report"]

OURS = "one-shot"
_SHOWN_IMAGES = 20  # of a class and client; the file itself holds the rest
_SHOWN_CLIENTS = 100
_NUMBERS = ("accuracy", "accuracy_std", "bytes_up", "bytes_down", "seconds")
_JOINED = "\N{NO-BREAK SPACE}"
_NONE = "\N{EN DASH}"
_TRAVELS = {
    OURS: "synthetic images",
    "random-real": "real images",
    "half-resolution-real": "real images, half resolution",
    "herding": "real images",
    "k-center": "real images",
    "k-means": "real images",
    "ridge": "sums of random features",
    "ridge-equal-bytes": "sums of few random features",
    "feature-statistics": "feature statistics a class",
}


@dataclass(frozen=True)
class Row:
    """One way to train the global network, as measured; what was not measured is nan.

    Args:
        name: As in `result.json`, such as ``"fedavg-20"``.
        accuracy: Of the global network on the test data, percent.
        accuracy_std: Standard deviation over seeds, in points.
        bytes_up: What a client sends, mean over clients, all rounds together.
        bytes_down: What a client receives.
        seconds: Wall clock of the whole row.
        per_class: Accuracy of each class, percent; empty where it was not kept.
    """

    name: str
    accuracy: float = math.nan
    accuracy_std: float = math.nan
    bytes_up: float = math.nan
    bytes_down: float = math.nan
    seconds: float = math.nan
    per_class: tuple[float, ...] = ()

    @property
    def rounds(self) -> int:
        """How many rounds of FedAvg this is, or 0."""
        head, _, rounds = self.name.rpartition("-")
        return int(rounds) if head == "fedavg" and rounds.isdecimal() else 0

    @property
    def label(self) -> str:
        """The name as a reader would say it."""
        if self.rounds:
            return f"FedAvg, {self.rounds} round{'s' if self.rounds > 1 else ''}"
        return OURS if self.name == OURS else self.name.replace("-", " ")

    @property
    def travels(self) -> str:
        """What a client sends."""
        return "weights, every round" if self.rounds else _TRAVELS.get(self.name, "")

    @property
    def measured(self) -> str:
        """Accuracy and spread, such as ``83.1 ± 0.4 %``."""
        if not math.isfinite(self.accuracy):
            return "not measured"
        spread = f" ± {self.accuracy_std:.1f}" if math.isfinite(self.accuracy_std) else ""
        return f"{self.accuracy:.1f}{spread} %".replace(" ", _JOINED)

    def clearly_above(self, other: Row) -> bool:
        """Tell whether the lead over `other` is half a point, and more than both spreads (added in quadrature)."""
        spreads = [s for s in (self.accuracy_std, other.accuracy_std) if math.isfinite(s)]
        return self.accuracy - other.accuracy > max(0.5, math.hypot(*spreads))


class Client(NamedTuple):
    """What one client sent, ready to be shown."""

    name: str
    summary: str
    rows: list[tuple[str, str, str, int]]  # class name, description, PNG as data URI, screen pixels wide
    error: str = ""


def read_result(directory: str | Path) -> dict[str, Any]:
    """Return what `result.json` in `directory` holds.

    Raises:
        DataError: There is none, or it is not a JSON object.
    """
    path = Path(directory) / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        made = "fedcondense federate DATA --output DIR"
        raise DataError(f"{path} does not exist; a report needs the folder that `{made}` wrote") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); run the federation again with --resume") from error
    if not isinstance(result, dict):
        raise DataError(f"{path} holds a {type(result).__name__}; needed: the object that `federate` writes")
    return result


def read_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return the measured rows, ours first, then FedAvg by rounds, then the controls; tolerant of what is missing."""
    rows = []
    once = len(_sequence(_mapping(result.get("settings")).get("evaluation_seeds"))) == 1
    for name, values in _mapping(result.get("rows")).items():
        values = _mapping(values)
        numbers = {key: _number(values.get(key)) for key in _NUMBERS}
        if once:
            numbers["accuracy_std"] = math.nan  # a single run has no spread, whatever the file says
        per_class = tuple(map(_number, _sequence(values.get("per_class"))))
        rows.append(Row(str(name), **numbers, per_class=per_class))
    return sorted(rows, key=lambda row: (row.name != OURS, not row.rounds, row.rounds))


def headline(rows: Sequence[Row]) -> list[str]:
    """Say in a few sentences how one-shot did against FedAvg and against the controls, whoever won."""
    from fedcondense.report.pictures import human_bytes

    ours = next((row for row in rows if row.name == OURS and math.isfinite(row.accuracy)), None)
    if ours is None:
        return ["This run did not measure the one-shot row, so there is nothing to compare."]
    said = [f"One round of synthetic images reaches {ours.measured} with {human_bytes(ours.bytes_up)} up a client."]
    fedavg = [row for row in rows if row.rounds and math.isfinite(row.accuracy)]
    if fedavg:
        there = next((row for row in fedavg if row.accuracy >= ours.accuracy), None)
        row = there or fedavg[-1]
        factor = row.bytes_up / ours.bytes_up if ours.bytes_up else math.nan
        cost = f"{row.measured} with {human_bytes(row.bytes_up)}, {factor:.3g} times the bytes"
        rounds = f"{row.rounds} round{'s' if row.rounds > 1 else ''}"
        verdict = "gets there in" if there else "is not there after" if ours.clearly_above(row) else "comes close in"
        said.append(f"FedAvg {verdict} {rounds}: {cost}.")
    controls = [row for row in rows if row.name != OURS and not row.rounds and math.isfinite(row.accuracy)]
    affordable = [row for row in controls if not row.bytes_up > 1.02 * ours.bytes_up]
    if affordable:
        best = max(affordable, key=lambda row: row.accuracy)
        if best.clearly_above(ours):
            said.append(f"A simpler way wins here: {best.label}, {best.measured} with {human_bytes(best.bytes_up)}.")
        elif ours.clearly_above(best):
            said.append(f"No control does as well for as few bytes; the best is {best.label}, {best.measured}.")
        else:
            said.append(f"That is within the spread of a simpler way, {best.label}, {best.measured}.")
    dearer = max((row for row in controls if row not in affordable), key=lambda row: row.accuracy, default=None)
    if dearer and dearer.clearly_above(ours):
        cost = f"{dearer.measured} with {human_bytes(dearer.bytes_up)}"
        said.append(f"With more bytes, {dearer.label} does better: {cost}.")
    return said


def write_report(directory: str | Path) -> Path:
    """Write `report.html` into the folder of a federation, over an older one, and return its path."""
    import jinja2

    from fedcondense.files import write_file

    directory = Path(directory)
    result = read_result(directory)
    rows = read_rows(result)
    counts = _counts(result)
    classes = _classes(result, counts)
    clients = [_client(path) for path in sorted((directory / "clients").glob("*.safetensors"))[:_SHOWN_CLIENTS]]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=_title(result),
        headline=headline(rows),
        rows=[_cells(row) for row in rows],
        figures=_figures(rows),
        figure_text="; ".join(f"{row.label}: {row.measured}" for row in rows),
        partition=_mapping(result.get("partition")),
        classes=classes,
        counts=counts,
        most=max((max(row, default=0) for row in counts), default=0),
        coverage=_coverage(result, rows, classes, counts),
        clients=clients,
        refused=[_mapping(entry) for entry in _sequence(result.get("refused"))],
        settings=_settings(result),
        command=result.get("command"),
        versions=_mapping(result.get("versions")),
    )
    return write_file(directory / "report.html", page.encode(), overwrite=True)


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the rows as lines of text, a heading first."""
    heading = ("way", "accuracy", "bytes up a client", "bytes down a client", "seconds")
    lines = [_cells(row) for row in rows]
    measured = [c["measured"].replace(_JOINED, " ") for c in lines]
    return [heading, *((c["label"], m, c["up"], c["down"], c["seconds"]) for c, m in zip(lines, measured, strict=True))]


def _title(result: Mapping[str, Any]) -> str:
    settings = _mapping(result.get("settings"))
    data = settings.get("data", "a federation")
    return f"{data}: one round of synthetic images against FedAvg"


def _cells(row: Row) -> dict[str, Any]:
    """Return what the table shows of a row."""
    from fedcondense.report.pictures import human_bytes

    return {
        "name": row.name,
        "label": row.label,
        "travels": row.travels,
        "ours": row.name == OURS,
        "real": row.travels.startswith("real"),
        "measured": row.measured,
        "up": human_bytes(row.bytes_up) if math.isfinite(row.bytes_up) else _NONE,
        "down": human_bytes(row.bytes_down) if math.isfinite(row.bytes_down) else _NONE,
        "seconds": f"{row.seconds:.1f}" if math.isfinite(row.seconds) else _NONE,
    }


def _figures(rows: Sequence[Row]) -> dict[str, str]:
    """Return accuracy against bytes as data URIs, for light and for dark paper; nothing if no row has both."""
    from fedcondense.report.pictures import DARK, LIGHT, Point, accuracy_by_bytes, svg

    def spread(row: Row) -> float:
        return row.accuracy_std if math.isfinite(row.accuracy_std) else 0.0

    def series(row: Row) -> int:
        return 0 if row.name == OURS else 1 if row.rounds else 2

    points = [Point(row.label, row.bytes_up, row.accuracy, spread(row), series(row)) for row in rows]
    if not any(math.isfinite(p.accuracy) and p.nbytes > 0 for p in points):
        return {}
    inks = {"light": LIGHT, "dark": DARK}
    return {name: _data_uri("image/svg+xml", svg(accuracy_by_bytes(points, ink))) for name, ink in inks.items()}


def _client(path: Path) -> Client:
    """Read what a client sent; a file that is refused becomes a sentence, not an error."""
    from fedcondense.report.pictures import class_rows, grid, human_bytes, png
    from fedcondense.sets.synthetic import SyntheticSet

    name = f"client {path.stem.lstrip('0') or '0'}"
    try:
        synthetic = SyntheticSet.load(path)
        by_class = class_rows(synthetic)
    except FedcondenseError as error:
        return Client(name, "", [], str(error).replace(str(path), path.name))
    columns = min(10, max((len(images) for _, images in by_class), default=1))
    scale = max(1, (56 if columns <= 5 else 40) // synthetic.shape[1])
    rows = []
    for label, images in by_class:
        picture = grid(images[:_SHOWN_IMAGES], columns=min(columns, len(images)))
        more = f" (the first {_SHOWN_IMAGES} of {len(images)})" if len(images) > _SHOWN_IMAGES else ""
        text = f"{len(images)} synthetic image{'s' if len(images) > 1 else ''} of class {label}{more}"
        rows.append((label, text, _data_uri("image/png", png(picture)), picture.width * scale))
    records = sum(sum(part.record.counts) for part in synthetic.parts)
    summary = f"{len(synthetic)} images of {len(by_class)} classes in {human_bytes(synthetic.nbytes)}"
    return Client(name, f"{summary}, for {records} records" if records else summary, rows)


def _counts(result: Mapping[str, Any]) -> list[list[int]]:
    """Return how many records of each class each client holds; empty if the file does not say, or says nonsense."""
    rows = _sequence(_mapping(result.get("partition")).get("counts"))
    counts = [[int(n) for n in map(_number, _sequence(row)) if math.isfinite(n)] for row in rows]
    return counts if len({len(row) for row in counts}) == 1 else []


def _classes(result: Mapping[str, Any], counts: Sequence[Sequence[int]]) -> list[str]:
    """Return the class names, or numbers where the file has none that fit."""
    wide = len(counts[0]) if counts else 0
    places = (result, _mapping(result.get("partition")), _mapping(result.get("settings")))
    for names in (_sequence(place.get("classes")) for place in places):
        if names and len(names) == (wide or len(names)):
            return [str(name) for name in names]
    return [str(k) for k in range(wide)]


def _coverage(
    result: Mapping[str, Any], rows: Sequence[Row], classes: Sequence[str], counts: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """Return for each class how many records and clients hold it, what arrived, and the one-shot accuracy."""
    arrived = _mapping(result.get("coverage"))
    ours = next((row for row in rows if row.name == OURS), Row(OURS))
    lines = []
    for k, name in enumerate(classes):
        column = [row[k] for row in counts]
        accuracy = ours.per_class[k] if k < len(ours.per_class) else math.nan
        lines.append(
            {
                "name": name,
                "records": sum(column) if counts else _NONE,
                "clients": sum(n > 0 for n in column) if counts else _NONE,
                "arrived": arrived.get(name, _NONE),
                "accuracy": f"{accuracy:.1f} %" if math.isfinite(accuracy) else _NONE,
            }
        )
    return lines


def _settings(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings as text, nested ones joined by a dot."""
    flat: list[tuple[str, str]] = []
    for key, value in _mapping(result.get("settings")).items():
        if isinstance(value, Mapping):
            flat += [(f"{key}.{inner}", str(item)) for inner, item in value.items()]
        else:
            flat.append((str(key), ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return flat


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan

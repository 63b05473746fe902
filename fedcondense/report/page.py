"""The report of a federation: one HTML file that needs nothing else, from the folder that `federate` wrote.

Whatever comes from clients (class names, reasons, images) is a stranger's: text is escaped, sets are read through the
same checks as any other file, and a policy in the page forbids scripts and requests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedcondense.data.folders import part_of
from fedcondense.errors import FedcondenseError
from fedcondense.files import write_file
from fedcondense.report.at_sites import at_sites
from fedcondense.report.by_class import classes_of, counts_of, coverage_of, held_of, over_all
from fedcondense.report.by_site import broken_in, held_back, sites_in, uncounted
from fedcondense.report.html import embedded, rendered
from fedcondense.report.reading import list_of, mapping_of, number_of
from fedcondense.report.results import (
    LEAST,
    ReportRow,
    headline,
    images_tested,
    read_result,
    read_rows,
    shown_cells,
    table,
)
from fedcondense.report.rounds import HEADING, lines_of, without_rounds
from fedcondense.report.served import better_alone, command_of, unmeasured
from fedcondense.report.units import human_bytes
from fedcondense.sets.by_class import images_by_class
from fedcondense.sets.pictures import grid, png
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["Client", "headline", "read_result", "read_rows", "said_of", "table", "write_report"]

_SHOWN_IMAGES = 20  # of a class and client; the file itself holds the rest
_SHOWN_CLIENTS = 100


class Client(NamedTuple):
    """What one client sent, ready to be shown."""

    name: str
    summary: str
    rows: list[tuple[str, str, str, int]]  # class name, description, PNG as data URI, screen pixels wide
    error: str = ""


def write_report(directory: str | Path, *, shows_refused: bool = False) -> Path:
    """Write `report.html` into the folder of a federation, over an older one, and return its path.

    Args:
        directory: The folder.
        shows_refused: Show the images that screens left out, too, for a person to judge; they may show anything.
    """
    directory = Path(directory)
    result = read_result(directory)
    rows, tested = read_rows(result), images_tested(result)
    counts = counts_of(result)
    classes = classes_of(result, counts)
    sets = sorted((directory / "clients").glob("*.safetensors"), key=lambda path: [len(path.stem), path.stem])
    away = mapping_of(result.get("ages"))
    clients = [_client(path, away.get(path.stem)) for path in sets[:_SHOWN_CLIENTS]]
    screened = sorted((directory / "refused").glob("*.safetensors"))[:_SHOWN_CLIENTS] if shows_refused else []
    out = [mapping_of(entry) for entry in list_of(result.get("refused"))]
    broken, files = broken_in(result)
    verdicts = [mapping_of(entry) for entry in list_of(result.get("screened"))]
    page = rendered(
        "report.html.j2",
        title=_title(result, rows),
        error=result.get("error"),
        headline=said_of(result, rows),
        rows=[shown_cells(row) for row in rows],
        tested=f"{tested:,.0f}" if math.isfinite(tested) else "",
        least=LEAST,
        figures=_figures(rows),
        figure_text="; ".join(f"{row.label}: {row.measured}" for row in rows),
        curves=_curves(rows),
        pasts=[(without_rounds(row.label), lines_of(row.past)) for row in rows if len(row.past) > 1],
        past_heading=HEADING,
        partition=held_of(result),
        classes=classes,
        counts=counts,
        names=[str(name) for name in list_of(held_of(result).get("names"))],
        most=max((max(row, default=0) for row in counts), default=0),
        coverage=coverage_of(result, rows, classes, counts),
        over_all=over_all(rows),
        uncounted=uncounted(result),
        sites=sites_in(result, rows),
        whose=next((row.label for row in rows if row.is_ours), "") if len(rows) > 1 else "",
        broken=broken,
        files=files,
        clients=clients,
        refused=[entry for entry in out if not _is_silent(entry)],
        silent=[entry for entry in out if _is_silent(entry)],
        screened=_screened(verdicts),
        unjudged=sum(number_of(verdict.get("weight")) == 1 for verdict in verdicts),
        left_out=[_client(path) for path in screened],
        settings=_settings(result),
        command=command_of(result),
        versions=mapping_of(result.get("versions")),
    )
    blob = page.encode(errors="replace")  # half a character, in whatever text of a stranger, is a question mark
    return write_file(directory / "report.html", blob, overwrite=True)


def said_of(result: Mapping[str, Any], rows: Sequence[ReportRow]) -> list[str]:
    """Return in sentences how rows compare, and what sites say; where the server measured nothing, that alone."""
    sites = at_sites(result)
    if held := held_back(result, rows):
        sites = [*sites, held]
        if not rows:
            return sites
    is_measured = any(math.isfinite(row.accuracy) for row in rows)
    told = any("right for" in text for text in sites)
    if not (is_measured or told) and list_of(result.get("sites")):
        return [*unmeasured(result), *sites]
    alone = better_alone(result, rows)
    return [*(headline(rows) if is_measured or not sites else []), *([alone] if alone else []), *sites]


def _is_silent(left_out: Mapping[str, Any]) -> bool:
    """Say whether a site is left out since nothing came from it, and not for what came."""
    return bool(left_out.get("absent") or left_out.get("held"))


def _title(result: Mapping[str, Any], rows: Sequence[ReportRow]) -> str:
    """Name the data, and what was compared."""
    data = _called(str(mapping_of(result.get("settings")).get("data") or "a federation"))
    labels = [row.label for row in rows]
    if len(labels) < 2:
        return f"{data}: {labels[0] if labels else 'nothing was measured'}"
    return f"{data}: {labels[0]} beside {len(labels) - 1} other way{'s' if len(labels) > 2 else ''}"


def _called(data: str) -> str:
    """Return what data are called: of a path the last name, or the one before it where that is a part's.

    >>> _called("digits"), _called("folder:/srv/leaves/test"), _called("npz:plants/oak.npz")
    ('digits', 'leaves', 'oak')
    """
    kind, _, path = data.partition(":")
    if kind not in ("folder", "npz"):
        return data
    names = [Path(path).stem if kind == "npz" else Path(path).name, Path(path).parent.name]
    return next((name for name in names if name and not part_of(name)), data)


def _figures(rows: Sequence[ReportRow]) -> dict[str, str]:
    """Return accuracy against bytes as data URIs, for light and for dark paper; nothing if no row has both."""
    from fedcondense.report.plots import Point, accuracy_by_bytes, svg

    def spread(row: ReportRow) -> float:
        return row.accuracy_std if math.isfinite(row.accuracy_std) else 0.0

    points = [Point(row.label, row.bytes_up, row.accuracy, spread(row), _series(row)) for row in rows]
    if not any(math.isfinite(p.accuracy) and p.nbytes > 0 for p in points):
        return {}
    return {name: embedded(svg(accuracy_by_bytes(points, ink)), "image/svg+xml") for name, ink in _inks().items()}


def _curves(rows: Sequence[ReportRow]) -> list[dict[str, str]]:
    """Return accuracy over rounds and over bytes as data URIs, with what they say; none if no row has two rounds."""
    from fedcondense.report.curves import Curve, over_bytes, over_rounds
    from fedcondense.report.plots import svg

    heads = [without_rounds(row.label) for row in rows]
    curves = [
        Curve(
            head if heads.count(head) == 1 else row.label,  # how many rounds there were, the axis says
            tuple(one.number for one in row.past),
            tuple(one.accuracy for one in row.past),
            tuple(one.so_far for one in row.past),
            _series(row),
        )
        for row, head in zip(rows, heads, strict=True)
        if any(math.isfinite(one.accuracy) for one in row.past)
    ]
    if not any(sum(map(math.isfinite, curve.accuracies)) > 1 for curve in curves):
        return []
    kinds = [("rounds", over_rounds)]
    if any(math.isfinite(nbytes) for curve in curves for nbytes in curve.nbytes):
        kinds.append(("bytes per site, up and down together", over_bytes))
    ends = "; ".join(f"{curve.label}: {curve.rounds[-1]} rounds, {curve.accuracies[-1]:.1f} %" for curve in curves)
    return [
        {"over": over, "text": ends}
        | {name: embedded(svg(draw(curves, ink)), "image/svg+xml") for name, ink in _inks().items()}
        for over, draw in kinds
    ]


def _series(row: ReportRow) -> int:
    """Return in which of a plot's three colours a row is drawn."""
    return 0 if row.is_ours else 1 if row.is_averaging else 2


def _inks() -> dict[str, Any]:
    from fedcondense.report.plots import DARK, LIGHT

    return {"light": LIGHT, "dark": DARK}


def _client(path: Path, away: Any = None) -> Client:
    """Read what a client sent; a file that is refused becomes a sentence, not an error.

    Args:
        path: The file.
        away: How long ago the client answered last, if it was absent since.
    """
    name = f"client {path.stem.lstrip('0') or '0'}" if path.stem.isdecimal() else path.stem  # of format 1, by number
    try:
        synthetic = SyntheticSet.load(path)
        by_class = images_by_class(synthetic)
    except FedcondenseError as error:
        return Client(name, "", [], str(error).replace(str(path), path.name))
    columns = min(10, max((len(images) for images in by_class.values()), default=1))
    scale = max(1, (56 if columns <= 5 else 40) // synthetic.shape[1])
    rows = []
    for label, images in by_class.items():
        picture = grid(images[:_SHOWN_IMAGES], columns=min(columns, len(images)))
        more = f" (the first {_SHOWN_IMAGES} of {len(images)})" if len(images) > _SHOWN_IMAGES else ""
        text = f"{len(images)} synthetic image{'s' if len(images) > 1 else ''} of class {label}{more}"
        rows.append((label, text, embedded(png(picture), "image/png"), picture.width * scale))
    records = max(sum(part.record.counts) for part in synthetic.parts)  # parts of one site are of the same records
    summary = (
        f"{len(synthetic)} images of {len(by_class)} classes in {human_bytes(synthetic.nbytes)} ({synthetic.codec})"
    )
    summary = f"{summary}, for {records} records" if records else summary
    return Client(name, f"{summary}{_age(mapping_of(away))}", rows)


def _age(away: Mapping[str, Any]) -> str:
    """Say since when a client was absent; nothing if it was not."""
    rounds, last = number_of(away.get("rounds")), number_of(away.get("round"))
    if not rounds >= 1:
        return ""
    day = f" ({str(away['at'])[:10]})" if away.get("at") else ""
    return f"; of round {last:.0f}{day}, {rounds:.0f} round{'s' if rounds > 1 else ''} ago"


def _screened(verdicts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Return what counts less than fully: client, class, share and why."""
    cut = [verdict for verdict in verdicts if number_of(verdict.get("weight")) < 1]
    return [
        (
            str(verdict.get("client", "?")),
            str(verdict.get("class", "?")),
            f"{100 * number_of(verdict.get('weight')):.0f} %",
            str(verdict.get("why", "")),
        )
        for verdict in cut
    ]


def _settings(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings as text, nested ones joined by a dot."""
    flat: list[tuple[str, str]] = []
    for key, value in mapping_of(result.get("settings")).items():
        if isinstance(value, Mapping):
            flat += [(f"{key}.{inner}", str(item)) for inner, item in value.items()]
        else:
            flat.append((str(key), ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return flat

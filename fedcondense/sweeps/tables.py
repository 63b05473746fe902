"""Tables of rows: Markdown with footnotes, CSV, the matrix of networks, and from where on it does not pay to distil."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fedcondense.sweeps.paired import Difference
from fedcondense.sweeps.rows import KEYS, Row, percent

__all__ = ["Crossing", "conclusions", "crossings", "made_with", "matrix", "to_csv", "to_markdown"]


class Crossing(NamedTuple):
    """From where on distilled images of one kind do no better than the best real ones of as many bytes."""

    data: str
    test_network: str
    objective: str
    parametrization: str
    wins: int | None  # the largest ipc at which they do better; None: at none
    ties: int | None  # the next ipc that was measured; None: they do better at the largest
    control: str  # the best real images there


def crossings(rows: Sequence[Row]) -> list[Crossing]:
    """Return where each distilled kind stops to beat the best real images by the larger standard deviation."""
    found = []
    for kind in dict.fromkeys(map(_kind, (row for row in rows if row.is_distilled))):
        points = [
            (row.ipc, *compared)
            for row in sorted(rows, key=lambda row: row.ipc or 0)
            if _kind(row) == kind and row.ipc is not None
            for compared in _compared(row, rows)
        ]
        wins = max((ipc for ipc, better, _ in points if better), default=None)
        after = [(ipc, control) for ipc, _, control in points if ipc > (wins or 0)]
        if points:
            ties, control = after[0] if after else (None, "")
            found.append(Crossing(*kind, wins, ties, control))
    return found


def conclusions(rows: Sequence[Row]) -> list[str]:
    """Say from how many images per class on it does not pay to distil."""
    said = []
    for c in crossings(rows):
        title = f"{c.data}, {c.test_network}: {c.objective} ({c.parametrization})"
        if c.ties is None:
            said.append(f"{title} pays up to ipc {c.wins}, the largest that was measured")
        elif c.wins is None:
            said.append(f"{title} does not pay: from ipc {c.ties} on, {c.control} does as well")
        else:
            said.append(f"{title} pays up to ipc {c.wins}; from ipc {c.ties} on, {c.control} does as well")
    return said


def _kind(row: Row) -> tuple[str, str, str, str]:
    return row.data, row.test_network, row.objective, row.parametrization


def _compared(row: Row, rows: Sequence[Row]) -> list[tuple[bool, str]]:
    """Return whether a row beats the best real images at equal bytes by the larger deviation, and which those are."""
    place = (row.data, row.ipc, row.test_network)
    real = [
        other
        for other in rows
        if not other.is_distilled
        and (other.data, other.ipc, other.test_network) == place
        and other.accuracy is not None
    ]
    if not real or row.accuracy is None:
        return []
    best = max(real, key=lambda other: other.accuracy or 0.0)
    margin = max(row.accuracy_std or 0.0, best.accuracy_std or 0.0)
    return [(row.accuracy - (best.accuracy or 0.0) > margin, best.objective)]


_CAPTION = (
    "Accuracy in percent on all test images, after the last step of training on the set alone: mean ± standard "
    "deviation over sets and networks. Bytes: of the set's file. CPU s: to make a set. Peak: memory meanwhile, of the "
    "process or on a GPU."
)
_PAIRED = (
    "Difference: in points, paired by the seeds of sets, which the same networks measure, mean ± standard error over "
    "sets; a tie is not above that."
)
_SCORES = "LRS and ARS, 0 to 100: DD-Ranking (arXiv 2505.13300), against random real images of as many bytes."


class Column(NamedTuple):
    """A column of the Markdown table."""

    title: str
    cell: Callable[[Row], str]
    right: bool = False


def _columns(rows: Sequence[Row]) -> list[Column]:
    columns = [
        Column("data", lambda r: r.data),
        Column("ipc", lambda r: "all" if r.ipc is None else str(r.ipc), True),
        Column("bytes", lambda r: "" if r.nbytes is None else f"{r.nbytes:,}", True),
        Column("objective", lambda r: r.objective),
        Column("parametrization", lambda r: r.parametrization),
        Column("made with", lambda r: r.network),
        Column("tested with", lambda r: r.test_network),
        Column("varied", lambda r: "" if r.value is None else f"{r.varied} = {r.value:g}"),
        Column("protocol", lambda r: r.protocol),
        Column("accuracy", percent, True),
        Column("difference", _difference, True),
        Column("sets x networks", lambda r: f"{r.sets} x {r.networks}", True),
        Column("steps", lambda r: "" if r.steps is None else str(r.steps), True),
        Column("CPU s", lambda r: "" if r.cpu_seconds is None else f"{r.cpu_seconds:.1f}", True),
        Column("peak MB", lambda r: "" if r.peak_bytes is None else f"{r.peak_bytes / 1e6:,.0f}", True),
        Column("LRS", lambda r: "" if r.lrs is None else f"{r.lrs:.1f}", True),
        Column("ARS", lambda r: "" if r.ars is None else f"{r.ars:.1f}", True),
    ]
    optional = {"varied", "LRS", "ARS", "difference", "peak MB"}
    kept = [c for c in columns if c.title not in optional or any(c.cell(row) for row in rows)]
    return [c for c in kept if c.title != "protocol" or any(row.protocol != "short" for row in rows)]


def _difference(row: Row) -> str:
    if row.difference is None:
        return ""
    return f"{Difference(row.difference, row.difference_error)} to {row.against}"


def to_markdown(rows: Sequence[Row], said: Sequence[str] = ()) -> str:
    """Return a table with footnotes for warnings and errors, and what follows from it."""
    columns, notes = _columns(rows), dict[str, int]()
    body = []
    for row in rows:
        texts = [*row.warnings, *([f"{row.failed} failed: {row.error}"] if row.error else [])]
        marks = "".join(f"[^{notes.setdefault(_flat(text), len(notes) + 1)}]" for text in texts)
        body.append([_flat(c.cell(row)) + (marks if c.title == "accuracy" else "") for c in columns])
    lines = [_joined([c.title for c in columns]), _joined(["---:" if c.right else "---" for c in columns])]
    lines += map(_joined, body)
    caption = [_CAPTION, *([_PAIRED] if any(row.difference is not None for row in rows) else [])]
    caption += [_SCORES] if any(row.lrs is not None or row.ars is not None for row in rows) else []
    blocks = ["\n".join(lines), " ".join(caption), *said]
    blocks += ["\n".join(f"[^{number}]: {text}" for text, number in notes.items())] if notes else []
    return "\n\n".join(blocks) + "\n"


def matrix(rows: Sequence[Row]) -> str:
    """Return accuracies by the network that condensed, or the selection, and the network that was tested."""
    tested = list(dict.fromkeys(row.test_network for row in rows))
    made = dict.fromkeys(made_with(row) for row in rows)
    lines = [_joined(["made with \\ tested with", *tested]), _joined(["---", *["---:"] * len(tested)])]
    found = {(made_with(row), row.test_network): percent(row) for row in rows}
    lines += [_joined([_flat(name), *(found.get((name, network), "") for network in tested)]) for name in made]
    return "\n".join(lines)


def made_with(row: Row) -> str:
    """Return what a row of the matrix is called."""
    return f"{row.objective}, {row.network}" if row.network else row.objective


def to_csv(rows: Sequence[Row]) -> str:
    """Return a header and one line per row, by the names in `KEYS`.

    Nothing for None; warnings are joined by semicolons, and the setting is JSON.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, KEYS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        texts = {"warnings": "; ".join(row.warnings), "setting": json.dumps(row.setting)}
        writer.writerow(row.to_dict() | texts)
    return text.getvalue()


def _joined(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _flat(text: str) -> str:
    """Keep a text in its cell: names and messages may hold what Markdown takes for a border or a line."""
    return " ".join(text.split()).replace("|", "\\|")

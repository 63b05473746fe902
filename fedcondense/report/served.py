"""What the record of a deployed run says of itself: its command, and what came where nobody measured."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fedcondense.report.reading import list_of, mapping_of
from fedcondense.report.results import ReportRow
from fedcondense.report.units import human_bytes

__all__ = ["command_of", "unmeasured"]

_WHERE = ("output", "resume")  # of this run alone


def command_of(result: Mapping[str, Any]) -> str:
    """Return the command that makes such a run again; empty: the file does not say."""
    if isinstance(given := result.get("command"), str):
        return given
    asked = mapping_of(result.get("asked"))
    if not asked:
        return ""
    config = " ".join(f"{key}={json.dumps(value)}" for key, value in asked.items() if key not in _WHERE)
    return f"flwr run strategies/{asked.get('strategy', 'one-shot')} --stream --run-config {shlex.quote(config)}"


def unmeasured(result: Mapping[str, Any], rows: Sequence[ReportRow]) -> list[str]:
    """Return in sentences what sites sent in a run that nobody tested, and how it would be."""
    sites, arrived = list_of(result.get("sites")), mapping_of(result.get("coverage"))
    images = sum(n for n in arrived.values() if isinstance(n, int))
    up = next((row.bytes_up for row in rows if math.isfinite(row.bytes_up)), math.nan)
    each = f", {human_bytes(up)} each" if math.isfinite(up) else ""
    many = f"{len(sites)} site{'' if len(sites) == 1 else 's'}"
    return [
        f"{many} sent {images} synthetic images{each}.",
        "How good the network is was not measured: give the server data to test on (data), or let nodes say so "
        "(allow-evaluate = true).",
    ]

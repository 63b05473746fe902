"""What the record of a deployed run says of itself: its command, and what came where nobody measured."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedcondense.report.reading import list_of, mapping_of, number_of
from fedcondense.report.results import ReportRow
from fedcondense.report.units import human_bytes

__all__ = ["better_alone", "command_of", "unmeasured"]

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


def unmeasured(result: Mapping[str, Any]) -> list[str]:
    """Return in sentences what sites sent in a run that nobody tested, and how it would be."""
    sites, arrived = list_of(result.get("sites")), mapping_of(result.get("coverage"))
    images = sum(n for n in arrived.values() if isinstance(n, int))
    sent = [number_of(mapping_of(one).get("total_up")) for one in list_of(result.get("rounds"))]
    up = f", {human_bytes(sum(sent))} in all" if sent and all(map(math.isfinite, sent)) else ""
    many = f"{len(sites)} site{'' if len(sites) == 1 else 's'}"
    return [
        f"{many} sent {images} synthetic images{up}.",
        "How good the network is was not measured: give the server data to test on (data), or let nodes say so "
        "(allow-evaluate = true in their configs).",
    ]


def better_alone(result: Mapping[str, Any], rows: Sequence[ReportRow]) -> str:
    """Return in a sentence which sites do better alone than all together; empty: none, or nobody measured it."""
    ours = next((row for row in rows if row.is_ours), ReportRow("none"))
    alone = next((row for row in map(mapping_of, mapping_of(result.get("rows")).values()) if "sites" in row), {})
    accuracies, names = map(number_of, list_of(alone.get("sites"))), list_of(alone.get("names"))
    found = sorted(zip(accuracies, names, strict=False), reverse=True, key=lambda one: one[0])
    better = [
        f"{name} {accuracy:.1f} %"
        for accuracy, name in found
        if replace(ours, accuracy=accuracy, accuracy_std=math.nan).clearly_above(ours)
    ]
    if not better:
        return ""
    more = f" and {len(better) - 5} more" if len(better) > 5 else ""
    return f"Alone, some sites do better on the same test records: {', '.join(better[:5])}{more}."

"""The release sheet of a site: one page on what left it, to whom, what protected it, and which code decided so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from fedcondense.files import write_file
from fedcondense.flower.node_log import LogLine
from fedcondense.flower.preview import check_node, read_log
from fedcondense.flower.wire import own_version
from fedcondense.report.html import rendered

__all__ = ["Released", "released", "write_release"]

_MOST = 1000  # lines that a page shows


class Released(NamedTuple):
    """What left a node over its life."""

    site: str
    log: Path
    answers: list[LogLine]
    nbytes: int
    refused: int  # questions
    records: int
    caps: dict[str, Any]
    allowance: dict[str, Any]
    sent: str
    shared: str


def released(config: Mapping[str, Any]) -> Released:
    """Read a node's config, data and log.

    Raises:
        SettingError: The config cannot work, or the node keeps no log.
        ResumeError: The log is damaged.
    """
    found = check_node(config)
    path, lines, _ = read_log(config)
    left = [line for line in lines if line.decision in ("answered", "kept")]
    own = found.placed.config
    return Released(
        found.name,
        path,
        left,
        sum(line.nbytes for line in left),
        len(lines) - len(left),
        sum(found.classes.values()),
        asdict(found.placed.caps),
        asdict(found.placed.allowance),
        "after somebody here looked at it" if own.send == "ask" else "at once",
        "to the server, which may send sets on to other sites" if own.share_with == "sites" else "to the server alone",
    )


def write_release(path: Path, found: Released) -> Path:
    """Write the page; a file that is there is replaced. It holds no record."""
    shown = found.answers[-_MOST:]
    page = rendered("release.html.j2", found=found, shown=shown, version=own_version())
    return write_file(path, page.encode(errors="replace"), overwrite=True)

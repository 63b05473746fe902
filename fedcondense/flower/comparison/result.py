"""What a comparison measured: the rows, and everything that a report needs beside them; and where that is written."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["FederationProgress", "FederationResult", "Output"]


class FederationProgress(NamedTuple):
    """How far a federation is, handed to the `progress` callback."""

    row: str  # the row that is computed
    detail: str  # such as "client 3 of 10, step 120 of 800, loss 0.31"
    done: float  # of the row, or of its stage, in [0, 1]
    stage: str = ""  # such as "training": it takes a time of its own, and may come again in each round

    @property
    def label(self) -> str:
        """What is done, for a progress line."""
        return f"{self.row}, {self.stage}" if self.stage else self.row


@dataclass(frozen=True)
class Output:
    """Where a comparison is written, and what becomes of a run that is there.

    Args:
        path: A folder (`fedcondense.flower.run_folder`).
        resume: Go on with what it holds; finished rows, sets and rounds are not run again, and all finished rows are in
            the result.
        overwrite: Delete the run that it holds, once the client with the most data could start on what is asked.
    """

    path: Path
    resume: bool = False
    overwrite: bool = False


@dataclass
class FederationResult:
    """What a federation measured.

    Args:
        rows: By name: ``accuracy`` and ``accuracy_std`` (percent, points), ``per_class`` (percent, in the order of
            `classes`; None for a class that the test data lack), ``bytes_up`` and ``bytes_down`` (of the messages, mean
            over clients, all rounds), ``seconds`` (wall clock), ``about`` (label, what travels, who sees it, rounds),
            and what belongs to the row alone.
        settings: What was asked for.
        partition: The rule, its settings, the count matrix and its hash.
        refused: One mapping for each client left out: ``client``, ``reason``, ``row``.
        coverage: How many synthetic images of each class arrived, by class name.
        classes: The class names in the order of the network's outputs.
        sites: Whose sets are in the union, by the names of their files.
        by_site: What each site took and answered, of the same row (`fedcondense.flower.books.by_site`).
        broken: The image files that were left out, since they cannot be read; SITE/FILE where each site has its own.
        tested: How many test images the rows were measured on.
        joined: The union of the clients' sets, with its evaluation; None if the row was not asked for.
        paths: The files that were written.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    partition: dict[str, Any] = field(default_factory=dict)
    refused: list[dict[str, Any]] = field(default_factory=list)
    coverage: dict[str, int] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)
    by_site: list[dict[str, Any]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    tested: int = 0
    joined: SyntheticSet | None = None
    paths: list[Path] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``result.json`` holds, of JSON's types."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("joined", "paths")}

"""A split among clients: the indices of each, the count matrix, its hash and its picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from torch import Tensor

from fedcondense.errors import OutputError

__all__ = ["Partition", "draw_partition"]


@dataclass(frozen=True, eq=False)
class Partition(Sequence[Tensor]):
    """A split of one data set: item i holds the indices of client i, (n_i,) int64.

    Args:
        indices: One tensor per client. No index occurs twice; some may be left out, depending on the rule.
        counts: Examples of each class at each client, (num_partitions, K) int64.
        name: The data set's name.
        classes: The class names, by label.
        by: The rule's name in `PARTITIONS`.
        settings: What the rule was given, seed included.
        names: What each client is called; empty: by its number.
    """

    indices: tuple[Tensor, ...]
    counts: Tensor
    name: str
    classes: tuple[str, ...]
    by: str
    settings: dict[str, Any]
    names: tuple[str, ...] = ()

    @cached_property
    def hash(self) -> str:
        """Sixteen hex digits of the SHA-256 of the count matrix and its shape: equal matrices, equal text."""
        digest = hashlib.sha256(repr(tuple(self.counts.shape)).encode())
        digest.update(self.counts.numpy().astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    @property
    def sizes(self) -> Tensor:
        """How many examples each client holds, (num_partitions,) int64."""
        return self.counts.sum(1)

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, item: int) -> Tensor: ...
    @overload
    def __getitem__(self, item: slice) -> tuple[Tensor, ...]: ...
    def __getitem__(self, item: int | slice) -> Tensor | tuple[Tensor, ...]:
        return self.indices[item]

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in self.settings.items())
        return f"Partition({self.name}, {len(self)} clients by {self.by}({settings}), hash {self.hash})"

    def to_dict(self) -> dict[str, Any]:
        """Return what a report needs, of JSON's types: the rule, its settings, the count matrix and its hash."""
        about = {"name": self.name, "by": self.by, "settings": self.settings, "hash": self.hash}
        about |= {"names": list(self.names)} if self.names else {}
        return {**about, "classes": list(self.classes), "counts": self.counts.tolist()}


def draw_partition(partition: Partition, path: str | Path) -> Path:
    """Draw the count matrix, one row per client and one column per class, with numbers where they fit.

    Args:
        partition: What to draw.
        path: Where; the ending (``.png``, ``.svg``, ``.pdf``) says in which format. An existing file is replaced.

    Returns:
        The path.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    clients, classes = partition.counts.shape
    numbers = partition.counts.numpy()
    row, column = 0.34 if clients <= 60 else 0.08, 0.55 if classes <= 40 else 0.12  # inches; small ones hold no numbers
    size = (min(2.4 + column * classes, 24), min(1.6 + row * clients, 24))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    largest = max(int(numbers.max(initial=0)), 2)
    shown = np.ma.masked_equal(numbers, 0)  # an absent class stays white
    picture = axes.imshow(shown, cmap="YlGnBu", norm=LogNorm(1, largest), aspect="auto")
    if clients <= 60 and classes <= 40:
        for (client, label), count in np.ndenumerate(numbers):
            ink = "white" if count > largest**0.6 else "black"
            axes.text(label, client, str(count) if count else "·", ha="center", va="center", fontsize=7, color=ink)
    if classes <= 40:
        axes.set_xticks(range(classes), partition.classes, rotation=45, ha="right", fontsize=8)
    if clients <= 60:
        names = partition.names or tuple(map(str, range(clients)))
        rows = [f"{name}  (n={n:,})" for name, n in zip(names, partition.sizes.tolist(), strict=True)]
        axes.set_yticks(range(clients), rows, fontsize=8)
    axes.set_xlabel("class")
    axes.set_ylabel("client")
    said = ", ".join(f"{name} {value}" for name, value in partition.settings.items())
    axes.set_title(f"{partition.name}: {partition.by} ({said})\ncounts {partition.hash}", fontsize=9)
    figure.colorbar(picture, ax=axes, label="examples")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # ValueError: an ending that matplotlib does not know
        raise OutputError(f"cannot draw the partition to {path}: {error}") from error
    return Path(path)

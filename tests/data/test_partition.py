from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedcondense.data.partition import draw_partition
from fedcondense.data.partitions import partition, partition_from_counts, partition_iid
from fedcondense.errors import OutputError


def labels_of(*counts: int) -> Tensor:
    """Return mixed labels with the given number of each class."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


def test_the_hash_is_of_the_counts_and_their_shape() -> None:
    flat = partition_from_counts(labels_of(4, 4), counts=[[1, 2], [3, 1]])
    other_seed = partition_from_counts(labels_of(4, 4), counts=[[1, 2], [3, 1]], seed=7)
    turned = partition_from_counts(labels_of(1, 2, 3, 1), counts=[[1, 2, 3, 1]])
    assert len(flat.hash) == 16
    assert flat.hash == other_seed.hash != turned.hash


def test_a_partition_is_a_sequence_of_index_tensors() -> None:
    split = partition_iid(labels_of(5, 5), 3)
    assert len(split) == 3
    assert all(part.dtype == torch.int64 for part in split)
    assert len(split[:2]) == 2
    assert "3 clients by iid(seed=42)" in repr(split)


@pytest.mark.parametrize("clients", [3, 80])
def test_the_picture_shows_rule_and_hash_as_text(tmp_path: Path, clients: int) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    split = partition(labels_of(*[100] * 10), clients, min_partition_size=0)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        text = draw_partition(split, tmp_path / "split.svg").read_text()
    assert split.hash in text
    assert "dirichlet (alpha 0.5" in text
    largest = str(int(split.counts.max()))
    assert (f">{largest}<" in text) == (clients == 3)  # many clients: colours alone


def test_a_picture_is_a_png_by_its_ending_and_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    split = partition_iid(labels_of(5, 5), 2)
    assert draw_partition(split, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match=r"cannot draw the partition to .*a\.xyz"):
        draw_partition(split, tmp_path / "a.xyz")
    with pytest.raises(OutputError, match="cannot draw"):
        draw_partition(split, tmp_path / "nowhere" / "a.png")

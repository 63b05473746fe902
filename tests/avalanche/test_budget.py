"""The budget of a buffer: `max_bytes` is what the file takes on the disk, whatever is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute

from fedcondense.avalanche import CodedBuffer, CondensedBuffer
from fedcondense.memory import Condenser, Selector

BOUND = 512 * 1024
LONG = tuple(f"leaf of the {c}th kind, with a name as people give them in folders" for c in range(10))
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"condenser": Selector("random"), "classes": LONG},
    "tiles": {"condenser": Condenser("dm", network="convnet3-w16", steps=0), "classes": LONG},
    "waiting": {"condenser": Selector("random"), "min_samples": 1000},
    "coded": {"condenser": Condenser("dm", network="convnet3-w16", steps=0), "codec": "bits-2", "classes": LONG},
    "half real": {"condenser": Selector("half-resolution"), "real_fraction": 0.5, "real_codec": "jpeg-30"},
    "fixed": {"condenser": Selector("random"), "adaptive_size": False, "total_num_groups": 10},
    "JPEG": {"balance": "reservoir", "classes": LONG},
}


def experience(first: int) -> AvalancheDataset:
    """Two classes of 64-pixel pictures in colour, smooth as photographs are."""
    generator = torch.Generator().manual_seed(first)
    small = torch.rand(80, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(small, size=(64, 64), mode="bilinear")
    labels = [first + k % 2 for k in range(80)]
    samples = list(zip(images, labels, strict=True))
    return AvalancheDataset([samples], data_attributes=[DataAttribute(labels, "targets")])


@pytest.mark.parametrize("kind", KINDS)
def test_512_kib_are_512_kib_of_the_disk_after_each_experience(kind: str, tmp_path: Path) -> None:
    """Labels, names, record and header, and what waits, are in the file, and the file is what is bounded."""
    make: Any = CodedBuffer if kind == "JPEG" else CondensedBuffer
    buffer = make(max_bytes="512 KiB", shape=(3, 64, 64), mean=(0.0,) * 3, std=(1.0,) * 3, **KINDS[kind])
    for first in range(0, 10, 2):
        buffer.update_from_dataset(experience(first))
        path = buffer.save(tmp_path / "memory.safetensors", overwrite=True)
        assert path.stat().st_size == buffer.nbytes <= BOUND
    assert [file.name for file in tmp_path.iterdir()] == ["memory.safetensors"]
    if kind != "waiting":
        assert buffer.nbytes > 0.75 * BOUND or len(buffer.buffer) >= 400  # all there were

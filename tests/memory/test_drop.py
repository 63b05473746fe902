"""A class is forgotten: nothing of it stays, the others keep theirs and get its bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedcondense.data.images import Data
from fedcondense.errors import SettingError
from fedcondense.memory import Condenser, Memory, Selector
from fedcondense.sets.synthetic import SyntheticSet

SETTINGS: dict[str, dict[str, Any]] = {
    "condensed": {"images": 24, "make": Condenser("dm", "pixels", network="convnet1-w16", steps=1)},
    "appended": {"images": 24, "make": Condenser("dm", "pixels", network="convnet1-w16", steps=1), "update": "append"},
    "hybrid": {"images": 24, "make": Selector("random"), "real_fraction": 0.5},
    "shared codes": {"images": 24, "make": Condenser("dm", "bases", network="convnet1-w16", steps=1)},
    "bytes": {"images": None, "make": Selector("random"), "max_bytes": 4000},
    "JPEG": {
        "images": None,
        "make": Selector("random"),
        "max_bytes": 12_000,
        "real_fraction": 1.0,
        "real_codec": "jpeg-30",
    },
    "waiting": {"images": 24, "make": Selector("random"), "minimum": 25},
}


def names_of(memory: Memory) -> set[str]:
    return {name.partition("#")[0] for name in memory.names}


def images_by_name(memory: Memory) -> dict[str, torch.Tensor]:
    assert memory.synthetic is not None
    images, targets = memory.synthetic.pixels()
    found: dict[str, torch.Tensor] = {}
    for c, name in enumerate(memory.synthetic.classes):
        mine = images[targets.argmax(1) == c]
        found[name] = mine
    return found


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_dropped_class_is_gone_the_others_stay_and_the_file_opens(
    kind: str, piece: Callable[..., Data], tmp_path: Path
) -> None:
    memory = Memory(**SETTINGS[kind])
    memory.add(piece(0, 1, count=20))
    memory.add(piece(2, 3, count=20))
    before, nbytes = images_by_name(memory), memory.nbytes
    memory.drop("2")
    assert names_of(memory) == {"0", "1", "3"}
    assert memory.nbytes < nbytes
    after = images_by_name(memory)
    assert {name.partition("#")[0] for name in after} == {"0", "1", "3"}
    if kind != "shared codes":  # these are made again without it; of a class that waits, more is replayed
        assert all(torch.equal(images[: len(before[name])], before[name]) for name, images in after.items())
    path = memory.save(tmp_path / "memory.safetensors")
    assert "2" not in {name.partition("#")[0] for name in SyntheticSet.load(path).classes}
    again = Memory(**SETTINGS[kind])
    again.load(path)
    assert again.to_bytes() == memory.to_bytes()
    for one in (memory, again):
        one.add(piece(0, count=30, begin=20))
    assert again.to_bytes() == memory.to_bytes()


@pytest.mark.parametrize("kind", ["bytes", "JPEG"])
def test_its_bytes_come_back_to_the_others(kind: str, piece: Callable[..., Data]) -> None:
    """After the drop, and more images, the others have what a memory gives them that never had the class."""
    dropped, never = (Memory(**SETTINGS[kind]) for _ in range(2))
    for classes in ((0, 1), (2, 3)):
        dropped.add(piece(*classes, count=60))
    never.add(piece(0, 1, count=60))
    least = {name: len(images) for name, images in images_by_name(dropped).items()}
    dropped.drop("2")
    dropped.drop("3")
    for memory in (dropped, never):
        memory.add(piece(0, 1, count=60, begin=60))
        assert memory.nbytes <= (memory.max_bytes or 0)
    found, wanted = ({n: len(i) for n, i in images_by_name(m).items()} for m in (dropped, never))
    assert all(found[name] > 1.5 * least[name] for name in "01")
    assert all(abs(found[name] - wanted[name]) <= 0.1 * wanted[name] for name in "01")


def test_images_of_it_that_are_held_in_ram_leave_too(digits: Data) -> None:
    memory = Memory(20, Selector("random"), every_samples=100)
    names = [digits.spec.classes[label] for label in digits.labels[:60].tolist()]
    memory.observe(digits.images[:60], names)
    memory.drop("3")
    assert len(memory.gathered) == 60 - names.count("3")
    memory.flush()
    assert "3" not in memory.names


def test_a_class_that_is_not_there_is_refused_by_name_and_the_last_one_leaves_nothing(
    piece: Callable[..., Data],
) -> None:
    memory = Memory(20, Selector("random"))
    memory.add(piece(0, 1))
    with pytest.raises(SettingError, match="no class '7' in this memory; it has 0, 1"):
        memory.drop("7")
    memory.drop("0")
    memory.drop("1")
    assert (memory.nbytes, memory.names) == (0, [])
    memory.add(piece(1))
    assert memory.names == ["1"]

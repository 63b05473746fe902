"""The power goes while a memory is being saved: what is on the disk is a whole memory, one experience old at most."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr")

from trust import kills

import fedcondense as fc
from fedcondense.data.images import Data
from fedcondense.memory import Memory, Selector

PIECES = 2


@functools.cache
def piece(k: int) -> Data:
    data = fc.load_data("digits").train.subset(torch.arange(100))
    return data.subset(data.labels // 2 == k)


def saved_after_each(path: Path, told: int) -> None:
    """Take in a stream's pieces, save after each, and tell how many saves have returned."""
    memory = Memory(20, Selector("random"))
    for k in range(PIECES):
        memory.add(piece(k))
        memory.save(path, overwrite=True)
        os.pwrite(told, bytes([k + 1]), 0)


def test_killed_at_each_system_call_of_each_save_the_last_good_memory_opens(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    for k in range(PIECES):
        piece(k)  # before the children are made, which share it
    at, ends, ages = 0, set[int](), set[int]()
    while -signal.SIGKILL in ends or not at:
        ends, at = set(), at + 2 if at else 1  # before each call: after one is before the next
        folder = tmp_path / str(at)
        folder.mkdir()
        path, told = folder / "memory.safetensors", os.open(folder / "told", os.O_RDWR | os.O_CREAT)

        def work(at: int = at, path: Path = path, told: int = told) -> None:
            kills._Marker(at).watch()
            saved_after_each(path, told)

        code, text = kills.forked(work)
        assert code in (0, -signal.SIGKILL), text
        ends.add(code)
        returned = (os.pread(told, 1, 0) or b"\0")[0]
        os.close(told)
        memory = Memory(20, Selector("random"))
        if path.exists():
            memory.load(path)
        assert len(memory.names) // 2 in (returned, returned + 1)  # it may be on the disk before `save` has returned
        ages.add(len(memory.names) // 2 - returned)
        again = Memory(20, Selector("random"))
        again.add(piece(0))
        again.save(path, overwrite=True)  # what was left behind is in nobody's way, and is cleared away
        assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []
    assert at > 10 * PIECES
    assert ages == {0, 1}

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fedcondense.checkpoints import Checkpoint
from fedcondense.errors import ResumeError

CONFIGURATION = {"seed": 3, "objective": "dm", "limit": 0.5}


def state() -> dict[str, Any]:
    """Everything that an optimizer, a generator and a source hand over."""
    return {
        "codes": {"images": torch.rand(2, 3, generator=torch.Generator().manual_seed(0))},
        "optimizer": {0: {"step": torch.tensor(4.0), "exp_avg": torch.ones(2)}, 1: {}},
        "draws": torch.Generator().manual_seed(5).get_state(),
        "source": {"seed": None, "taken": 7, "weights": {}},
        "half": torch.tensor([0.1]).half(),
        "same": [torch.tensor(1), [2, "text", True]],
        "transposed": torch.arange(6).view(2, 3).T,
        "seconds": 0.1 + 0.2,
        "large": 2**62 + 1,
    }


def assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


def written(path: Path) -> bytes:
    Checkpoint(path).write(CONFIGURATION, state())
    return path.read_bytes()


def test_the_state_comes_back_bit_by_bit_with_its_integer_keys(tmp_path: Path) -> None:
    written(tmp_path / "c")
    read = Checkpoint(tmp_path / "c", resume=True).read(CONFIGURATION)
    assert_equal(read, state())


def test_a_state_with_the_key_tensor_is_not_mistaken_for_a_tensor(tmp_path: Path) -> None:
    tricky = {"tensor": "0", "items": [["tensor", 1]], "weights": {"tensor": torch.ones(1)}}
    Checkpoint(tmp_path / "c").write({}, tricky)
    assert_equal(Checkpoint(tmp_path / "c", resume=True).read({}), tricky)


def test_nothing_is_read_without_a_file_or_unless_asked(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "c", resume=True).read(CONFIGURATION) is None
    written(tmp_path / "c")
    assert Checkpoint(tmp_path / "c").read(CONFIGURATION) is None


def test_a_write_replaces_the_file_whole(tmp_path: Path) -> None:
    written(tmp_path / "c")
    Checkpoint(tmp_path / "c").write(CONFIGURATION, {"done": 2})
    assert_equal(Checkpoint(tmp_path / "c", resume=True).read(CONFIGURATION), {"done": 2})
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


def test_another_configuration_is_refused_with_all_that_differs(tmp_path: Path) -> None:
    written(tmp_path / "c")
    other = {"seed": 4, "objective": "dm", "precision": "torch.float32"}
    with pytest.raises(ResumeError) as refused:
        Checkpoint(tmp_path / "c", resume=True).read(other)
    text = str(refused.value)
    assert "c belongs to another run: " in text
    assert "seed was 3, is 4" in text
    assert "limit was 0.5, is None" in text
    assert "precision was None, is 'torch.float32'" in text
    assert "objective" not in text
    assert "Resume with the settings it was started with, or delete it to start again" in text


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    blob = written(path)
    for size in range(0, len(blob), 7):
        path.write_bytes(blob[:size])
        with pytest.raises(ResumeError, match=r"is no checkpoint .*; delete it and start again"):
            Checkpoint(path, resume=True).read(CONFIGURATION)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"noise" * 100,
        safetensors.torch.save({"weight": torch.ones(2)}),
        safetensors.torch.save({}, metadata={"checkpoint": "not json"}),
        safetensors.torch.save({}, metadata={"checkpoint": "[]"}),
        safetensors.torch.save({}, metadata={"checkpoint": '{"configuration": {}, "state": {"tensor": "7"}}'}),
        safetensors.torch.save({}, metadata={"checkpoint": '{"configuration": 3, "state": {"items": []}}'}),
        safetensors.torch.save({}, metadata={"checkpoint": '{"configuration": {}, "state": {"items": [[1]]}}'}),
        safetensors.torch.save({}, metadata={"checkpoint": '{"configuration": {}, "state": 3}'}),
    ],
)
def test_what_is_no_checkpoint_is_refused(blob: bytes, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(blob)
    with pytest.raises(ResumeError, match="is no checkpoint"):
        Checkpoint(tmp_path / "c", resume=True).read({})


def test_a_write_is_due_after_so_many_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    checkpoint = Checkpoint(tmp_path / "c", every_s=5, _written=now)
    assert not checkpoint.is_due()
    now = 105.0
    assert checkpoint.is_due()
    checkpoint.write({}, {})
    assert not checkpoint.is_due()


def test_removing_twice_is_fine(tmp_path: Path) -> None:
    written(tmp_path / "c")
    checkpoint = Checkpoint(tmp_path / "c")
    checkpoint.remove()
    checkpoint.remove()
    assert not list(tmp_path.iterdir())

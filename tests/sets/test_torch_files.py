from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcondense.errors import UntrustedSetError
from fedcondense.sets.torch_files import Stored, read_torch

RAN = "ran.txt"


def loaded(value: Any) -> Any:
    """Replace what is stored by tensors."""
    if isinstance(value, Stored):
        return value.load()
    if isinstance(value, dict):
        return {k: loaded(v) for k, v in value.items()}
    return type(value)(map(loaded, value)) if isinstance(value, list | tuple) else value


def saved(tmp_path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, tmp_path / "file.pt", **options)
    return tmp_path / "file.pt"


def rewritten(tmp_path: Path, change: Callable[[str, bytes], bytes], value: Any, compression: int = 0) -> Path:
    """Save a value, and write its archive anew with some entries changed."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    path = tmp_path / "changed.pt"
    with zipfile.ZipFile(buffer) as given, zipfile.ZipFile(path, "w", compression) as made:
        for name in given.namelist():
            made.writestr(name, change(name.rpartition("/")[2], given.read(name)))
    return path


def program(tmp_path: Path, pickled: bytes) -> Path:
    return rewritten(tmp_path, lambda name, raw: pickled if name == "data.pkl" else raw, torch.zeros(4))


class Runs:
    """Pickles to a call that leaves a file behind."""

    def __reduce__(self) -> Any:
        return open, (RAN, "w")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
     torch.uint8, torch.bool],
)  # fmt: skip
def test_tensors_equal_what_torch_loads(dtype: torch.dtype, protocol: int, tmp_path: Path) -> None:
    whole = torch.arange(2 * 3 * 4).reshape(2, 3, 4).to(dtype)
    value = {
        "data": [[whole, whole[:, 1]], (whole.permute(2, 0, 1), whole[1:, ::2])],
        "n": 3,
        "x": 1.5,
        "s": "a",
        "z": None,
    }
    path = saved(tmp_path, value, pickle_protocol=protocol)
    mine = loaded(read_torch(path))
    torch.testing.assert_close(mine.pop("data"), value["data"], rtol=0, atol=0)
    assert mine == {k: v for k, v in value.items() if k != "data"}
    if protocol == 2:  # the only one that torch reads without running it
        torch.testing.assert_close(loaded(read_torch(path))["data"], torch.load(path)["data"], rtol=0, atol=0)


def test_weights_of_a_network_and_parameters_are_tensors(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 2)
    path = saved(tmp_path, [network.state_dict(), OrderedDict(weight=network.weight)])
    first, second = loaded(read_torch(path))
    torch.testing.assert_close(first, dict(network.state_dict()))
    torch.testing.assert_close(second["weight"], network.weight.detach())


def test_numbers_of_numpy_beside_the_tensors_are_passed_over(tmp_path: Path) -> None:
    """DC keeps its accuracies so; `torch.load` with weights_only refuses the file."""
    path = saved(tmp_path, {"data": [torch.ones(2)], "accs": {"ConvNet": [np.float64(51.5), np.float32(3)]}})
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    content = loaded(read_torch(path))
    assert torch.equal(content["data"][0], torch.ones(2))
    assert len(content["accs"]["ConvNet"]) == 2


def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (Runs(), {"data": [torch.ones(1), Runs()]}, [np.float64(1), Runs()]):
        path = saved(tmp_path, value)
        with pytest.raises(UntrustedSetError, match=r"holds _?io\.open, but only tensors, numbers and texts are read"):
            read_torch(path)
    assert not (tmp_path / RAN).exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [(torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"), (np.ones(3), "_reconstruct"), ({1, 2}, "EMPTY_SET|set"),
     (torch.ones(2).to_sparse(), "_rebuild_sparse_tensor")],
)  # fmt: skip
def test_what_is_no_tensor_is_named(value: Any, name: str, tmp_path: Path) -> None:
    with pytest.raises(UntrustedSetError, match=rf"file\.pt: holds .*({name})"):
        read_torch(saved(tmp_path, value))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x04\x85", b"K\x05\x85"),  # a size beyond what is stored
        (b"QK\x00", b"QK\x01"),  # an offset that leads beyond it
        (b"K\x01\x85", b"K\x02\x85"),  # a stride that leads beyond it
        (b"cpuq\x04K\x04", b"cpuq\x04K\x05"),  # more numbers than there are bytes
        (b"cpuq\x04K\x04", b"cpuq\x04K\x03"),  # fewer
    ],
)
def test_a_tensor_reaches_nothing_but_its_own_numbers(old: bytes, new: bytes, tmp_path: Path) -> None:
    def lie(name: str, raw: bytes) -> bytes:
        if name != "data.pkl":
            return raw
        assert raw.count(old) == 1, raw
        return raw.replace(old, new)

    with pytest.raises(UntrustedSetError, match=r"malformed|a tensor of \d+ bytes is stored in 16"):
        loaded(read_torch(rewritten(tmp_path, lie, torch.zeros(4))))


def test_a_small_file_does_not_become_a_large_tensor(tmp_path: Path) -> None:
    with pytest.raises(UntrustedSetError, match=r"a tensor of \(1000000, 1000000\) in 1 numbers"):
        read_torch(saved(tmp_path, torch.zeros(1).expand(10**6, 10**6)))
    zeros = rewritten(tmp_path, lambda name, raw: raw, torch.zeros(10**6), zipfile.ZIP_DEFLATED)
    with pytest.raises(UntrustedSetError, match=r"is compressed, which torch\.save does not do"):
        loaded(read_torch(zeros))


@pytest.mark.parametrize(
    "pickled",
    [b"", b".", b"\x80\x02.", b"\x80\x02(", b"\x80\x02]a.", b"\x80\x02h\x07.", b"\x80\x02}]]s.", b"\x80\x02K\x01R.",
     b"\x80\x02K\x01b.", b"\x80\x02ctorch\nFloatStorage\n)R.", b"\x80\x02U\x01aQ.", b"not a pickle",
     b"\x80\x02" + b"]" * 9],
)  # fmt: skip
def test_malformed_programs_are_refused(pickled: bytes, tmp_path: Path) -> None:
    with pytest.raises(UntrustedSetError):
        read_torch(program(tmp_path, pickled))


def test_deep_nesting_is_no_danger(tmp_path: Path) -> None:
    depth = 200_000
    assert read_torch(program(tmp_path, b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".")) != []


@pytest.fixture(scope="module")
def blob() -> bytes:
    buffer = io.BytesIO()
    torch.save({"data": [[torch.rand(2, 1, 8, 8), torch.arange(2)]], "accs": [np.float64(1)]}, buffer)
    return buffer.getvalue()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_a_refusal_or_no_harm(
    blob: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(blob)
    end = len(blob) if data.draw(st.booleans()) else 700  # the program comes first
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(bytes(damaged[: data.draw(st.sampled_from([len(blob), len(blob), 900]))]))
    with contextlib.suppress(UntrustedSetError):  # any other error fails
        loaded(read_torch(path))


def test_what_is_no_such_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(UntrustedSetError, match=r"none\.pt: No such file or directory; give the path of a \.pt file"):
        read_torch(tmp_path / "none.pt")
    with pytest.raises(UntrustedSetError, match=r"if torch before 1\.6 wrote it, and you trust it, save it anew"):
        read_torch(saved(tmp_path, torch.ones(2), _use_new_zipfile_serialization=False))
    with pytest.raises(UntrustedSetError, match=r"more than the 100 bytes that are allowed \(max_bytes\)"):
        read_torch(saved(tmp_path, torch.ones(2)), max_bytes=100)
    np.savez(tmp_path / "file.npz", x=np.ones(2))
    with pytest.raises(UntrustedSetError, match=r"an archive that torch\.save did not write"):
        read_torch(tmp_path / "file.npz")
    whole = saved(tmp_path, torch.ones(2)).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:-30])
    with pytest.raises(UntrustedSetError, match="a damaged archive"):
        read_torch(tmp_path / "cut.pt")

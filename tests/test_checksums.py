from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcondense.checksums import (
    PLACE,
    DamagedError,
    append_checksum,
    check,
    check_file,
    dump_json,
    dump_tensors,
    load_json,
    load_tensors,
    seal,
    without_checksum,
)

TENSORS = {"a": torch.arange(6).view(2, 3), "b": torch.tensor([], dtype=torch.float16)}
RECORD = {"name": "ü", "number": 0.1, "looks like one": PLACE}
MADE: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "json": (dump_json(RECORD), load_json),
    "tensors": (dump_tensors(TENSORS, "kept", RECORD), lambda blob: load_tensors(blob, "kept")),
    "appended": (append_checksum(b"an archive" * 99), without_checksum),
    "large": (seal(PLACE.encode() + bytes(3 << 20)), check),
}


def test_what_is_written_comes_back() -> None:
    assert load_json(MADE["json"][0]) == RECORD
    tensors, record = load_tensors(MADE["tensors"][0], "kept")
    assert {key: value for key, value in record.items() if key != "checksum"} == RECORD
    for name, value in TENSORS.items():
        torch.testing.assert_close(tensors[name], value, rtol=0, atol=0)


def test_a_tensor_that_does_not_lie_in_order_is_put_in_order() -> None:
    turned = torch.arange(6).view(2, 3).T
    assert torch.equal(load_tensors(dump_tensors({"a": turned}, "kept", {}), "kept")[0]["a"], turned)


def test_what_has_its_checksum_after_it_comes_back_and_nothing_shorter_has_one() -> None:
    assert without_checksum(append_checksum(b"")) == b""
    assert without_checksum(MADE["appended"][0]) == b"an archive" * 99
    for blob in (b"", b"an archive", MADE["appended"][0][:-1], MADE["json"][0]):
        with pytest.raises(DamagedError, match="its checksum is another, or it was written without one"):
            without_checksum(blob)


def test_other_readers_open_it() -> None:
    assert json.loads(MADE["json"][0])["name"] == "ü"
    assert safetensors.torch.load(MADE["tensors"][0]).keys() == TENSORS.keys()


def test_equal_content_is_equal_bytes() -> None:
    assert dump_tensors(TENSORS, "kept", RECORD) == MADE["tensors"][0]


@pytest.mark.parametrize("name", MADE)
@given(place=st.integers(0, 2**32), change=st.integers(1, 255))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_every_byte_counts(name: str, place: int, change: int) -> None:
    blob, read = bytearray(MADE[name][0]), MADE[name][1]
    blob[place % min(len(blob), 4096)] ^= change
    with pytest.raises(DamagedError):
        read(bytes(blob))


@pytest.mark.parametrize("name", MADE)
@given(size=st.floats(0, 1, exclude_max=True))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_every_cut_and_everything_behind_it_counts(name: str, size: float) -> None:
    blob, read = MADE[name]
    for damaged in (blob[: int(size * len(blob))], blob + b" ", blob + blob[:7]):
        with pytest.raises(DamagedError):
            read(damaged)


def test_a_file_is_checked_in_pieces(tmp_path: Path) -> None:
    blob = MADE["large"][0]
    (tmp_path / "file").write_bytes(blob)
    check_file(tmp_path / "file")
    (tmp_path / "file").write_bytes(blob[:-1] + b"\x01")
    with pytest.raises(DamagedError, match="its checksum is another"):
        check_file(tmp_path / "file")


def test_what_was_never_sealed_says_so() -> None:
    for blob in (b"", b"{}", safetensors.torch.save(TENSORS)):
        with pytest.raises(DamagedError, match="it has no checksum"):
            check(blob)
    with pytest.raises(DamagedError, match="it is something else"):
        load_tensors(dump_json(RECORD), "kept")
    with pytest.raises(DamagedError, match="it is something else"):
        load_tensors(MADE["tensors"][0], "another")

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedcondense.errors import UntrustedSetError
from fedcondense.flower.payloads import Metrics, Sums, Weights
from fedcondense.networks import build
from fedcondense.sets.format import Limits

TENSORS: dict[str, Tensor] = {
    "gram": torch.arange(6.0).reshape(2, 3),
    "counts": torch.tensor([1, 2]),
    "half": torch.tensor([0.5]).half(),
    "codes": torch.tensor([-3, 3], dtype=torch.int8),
    "one": torch.tensor(2.0, dtype=torch.float64),
    "none": torch.zeros(0, 4),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def with_header(edit: Any) -> bytes:
    """Return the bytes of `TENSORS` with another header, whose length is right."""
    blob = Sums(TENSORS).to_bytes()
    size = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + size])
    edit(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + blob[8 + size :]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return set(one) == set(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("kind", [Sums, Weights])
class TestTensors:
    def test_they_come_back_bit_by_bit(self, kind: type[Sums | Weights]) -> None:
        assert same(kind.from_bytes(kind(TENSORS).to_bytes()).tensors, TENSORS)
        assert same(kind.from_bytes(memoryview(kind({}).to_bytes())).tensors, {})

    def test_slices_and_transposes_come_back_too(self, kind: type[Sums | Weights]) -> None:
        whole = torch.arange(12.0).reshape(3, 4)
        given = {"row": whole[1], "turned": whole.T, "again": whole.T}
        assert same(kind.from_bytes(kind(given).to_bytes()).tensors, given)

    @pytest.mark.parametrize(
        "blob",
        [
            b"",
            b"1234567",
            bytes(8),
            (2**40).to_bytes(8, "little") + b"{}",
            (1 << 21).to_bytes(8, "little") + bytes(1 << 21),
            (5).to_bytes(8, "little") + b"{bad}",
            (200_000).to_bytes(8, "little") + b"[" * 200_000,
            b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        ],
    )
    def test_what_is_no_file_is_refused(self, kind: type[Sums | Weights], blob: bytes) -> None:
        with pytest.raises(UntrustedSetError, match=kind.__name__.lower()):
            kind.from_bytes(blob)

    @pytest.mark.parametrize("cut", [1, 7, 60, -1])
    def test_what_was_cut_or_is_longer_is_refused(self, kind: type[Sums | Weights], cut: int) -> None:
        blob = kind(TENSORS).to_bytes()
        for damaged in (blob[:cut], blob + b"x"):
            with pytest.raises(UntrustedSetError):
                kind.from_bytes(damaged)

    @pytest.mark.parametrize(
        "edit",
        [
            lambda header: header["gram"].update(shape=[2**40, 3]),
            lambda header: header["gram"].update(shape=[-2, -3]),
            lambda header: header["gram"].update(dtype="O"),
            lambda header: header["gram"].update(data_offsets=[0, 2**40]),
            lambda header: header["gram"].update(data_offsets=[8, 32]),
            lambda header: header.pop("counts"),
            lambda header: header.update(more=header["gram"]),
        ],
    )
    def test_a_header_that_lies_is_refused(self, kind: type[Sums | Weights], edit: Any) -> None:
        with pytest.raises(UntrustedSetError, match="damaged"):
            kind.from_bytes(with_header(edit))

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    def test_numbers_that_are_not_finite_are_refused_by_the_name_of_their_tensor(
        self, kind: type[Sums | Weights], value: float, dtype: torch.dtype
    ) -> None:
        blob = kind({"sound": torch.ones(3), "broken": torch.tensor([1.0, value]).to(dtype)}).to_bytes()
        with pytest.raises(UntrustedSetError, match="'broken' holds numbers that are not finite"):
            kind.from_bytes(blob)

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.uint16])
    def test_kinds_of_numbers_that_no_sum_or_network_has_are_refused(
        self, kind: type[Sums | Weights], dtype: torch.dtype
    ) -> None:
        """Of some of them torch cannot say whether they are finite."""
        with pytest.raises(UntrustedSetError, match=f"'a' is of {dtype}; allowed"):
            kind.from_bytes(kind({"a": torch.ones(2).to(dtype)}).to_bytes())

    def test_more_bytes_than_allowed_are_refused(self, kind: type[Sums | Weights]) -> None:
        blob = kind(TENSORS).to_bytes()
        with pytest.raises(UntrustedSetError, match=f"of {len(blob)} bytes; allowed: {len(blob) - 1}"):
            kind.from_bytes(blob, Limits(nbytes=len(blob) - 1))

    @given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=9))
    def test_bytes_changed_at_random_are_refused_or_finite(
        self, kind: type[Sums | Weights], changes: list[tuple[int, int]]
    ) -> None:
        blob = bytearray(kind(TENSORS).to_bytes())
        for place, value in changes:
            blob[place % len(blob)] = value
        try:
            read = kind.from_bytes(bytes(blob))
        except UntrustedSetError:
            return
        assert sum(t.nbytes for t in read.tensors.values()) <= len(blob)
        assert all(bool(t.isfinite().all()) for t in read.tensors.values() if t.is_floating_point())

    @given(st.binary(max_size=200))
    def test_any_bytes_are_refused_or_read(self, kind: type[Sums | Weights], blob: bytes) -> None:
        for given_ in (blob, len(blob).to_bytes(8, "little") + blob):
            try:
                assert isinstance(kind.from_bytes(given_), kind)
            except UntrustedSetError:
                continue

    @pytest.mark.parametrize(
        ("like", "needed"),
        [
            ({"a": torch.ones(2)}, "other names than those of mine: 'b'"),
            ({"a": torch.ones(2), "c": torch.ones(2)}, "other names than those of mine: 'b', 'c'"),
            ({"a": torch.ones(3), "b": torch.ones(2)}, r"'a' is \(2,\) torch.float32; mine has \(3,\)"),
            ({"a": torch.ones(2), "b": torch.ones(2, dtype=torch.int64)}, "'b' is .*; mine has .*int64"),
        ],
    )
    def test_matching_names_what_differs(
        self, kind: type[Sums | Weights], like: dict[str, Tensor], needed: str
    ) -> None:
        given_ = kind({"a": torch.ones(2), "b": torch.ones(2)})
        with pytest.raises(UntrustedSetError, match=needed):
            given_.matching(like, "mine")
        assert given_.matching(dict(reversed(list(given_.tensors.items()))), "mine") is given_


class TestWeights:
    @pytest.mark.parametrize("name", ["convnet1-w16", "convnet1-w16-batch"])
    def test_a_network_comes_back_with_its_buffers(self, name: str) -> None:
        """Batch normalisation counts its batches in int64."""
        one, other = (build(name, (1, 8, 8), 3, seed) for seed in (0, 1))
        Weights.from_bytes(Weights.of(one).to_bytes()).load_into(other)
        assert same(one.state_dict(), other.state_dict())

    def test_they_are_a_copy(self) -> None:
        network = torch.nn.Linear(2, 2)
        weights = Weights.of(network)
        before = weights.tensors["bias"].clone()
        with torch.no_grad():
            network.bias.add_(1)
        assert torch.equal(weights.tensors["bias"], before)

    def test_those_of_another_network_are_refused_and_change_nothing(self) -> None:
        network = torch.nn.Linear(2, 2)
        before = Weights.of(network)
        with pytest.raises(UntrustedSetError, match="this network has"):
            Weights.of(torch.nn.Linear(3, 2)).load_into(network)
        assert same(before.tensors, network.state_dict())


class TestSums:
    @given(st.lists(st.lists(st.integers(-(2**62), 2**62 - 1), min_size=3, max_size=3), min_size=1, max_size=5))
    def test_they_add_up_name_by_name_and_whole_numbers_wrap_as_int64_does(self, rows: list[list[int]]) -> None:
        total = Sums({"n": torch.tensor(rows[0])})
        for row in rows[1:]:
            total = total + Sums({"n": torch.tensor(row)})
        wanted = [(sum(column) + 2**63) % 2**64 - 2**63 for column in zip(*rows, strict=True)]
        assert total.tensors["n"].tolist() == wanted

    def test_wide_sums_lose_nothing(self) -> None:
        """1e8 and then 1, a hundred times: float32 keeps none of them."""
        one = Sums({"x": torch.tensor([1.0]), "n": torch.tensor([1])}).wide()
        total = Sums({"x": torch.tensor([1e8]), "n": torch.tensor([0])}).wide()
        for _ in range(100):
            total = total + one
        assert float(total.tensors["x"]) == 1e8 + 100
        assert total.tensors["n"].dtype == torch.int64

    def test_sums_of_another_shape_are_refused(self) -> None:
        with pytest.raises(UntrustedSetError, match="the other sums"):
            _ = Sums({"x": torch.ones(2)}) + Sums({"x": torch.ones(3)})


class TestMetrics:
    def test_they_come_back(self) -> None:
        numbers = {"loss": 0.25, "seen": 3, "ü": -1.0}
        assert Metrics.from_bytes(memoryview(Metrics(numbers).to_bytes())).numbers == numbers

    @pytest.mark.parametrize(
        "blob",
        [
            b"",
            b"{",
            b"[1, 2]",
            b"3",
            b'{"a": "3"}',
            b'{"a": true}',
            b'{"a": null}',
            b'{"a": [1]}',
            b'{"a": NaN}',
            b'{"a": -Infinity}',
            b'{"a": 1e999}',
            b"\xff\xfe",
            b"[" * 60_000,
            b'{"a": ' + b"9" * 5000 + b"}",
            b'{"a": ' + b"9" * 400 + b"}",
            json.dumps({str(k): k for k in range(1001)}).encode(),
            b'{"a": 1' + b" " * (1 << 16) + b"}",
        ],
    )
    def test_what_is_no_object_of_finite_numbers_is_refused(self, blob: bytes) -> None:
        with pytest.raises(UntrustedSetError, match="metrics"):
            Metrics.from_bytes(blob)

    @given(JSON)
    def test_any_json_is_refused_or_numbers_by_name(self, given_: Any) -> None:
        try:
            read = Metrics.from_bytes(json.dumps(given_).encode())
        except UntrustedSetError:
            return
        assert read.numbers == given_
        assert all(type(number) in (int, float) for number in read.numbers.values())

    @given(st.binary(max_size=100))
    def test_any_bytes_are_refused_or_read(self, blob: bytes) -> None:
        try:
            assert isinstance(Metrics.from_bytes(blob), Metrics)
        except UntrustedSetError:
            return
